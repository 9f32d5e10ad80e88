package carrier

// For tests of what a Dialer does by default.
var NewNetDialer = newNetDialer

const FallbackDelay = fallbackDelay
