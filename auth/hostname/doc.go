// Package hostname converts host names in Unicode to the form that resolvers, certificates
// and HTTP know (IDNA, RFC 5891): bücher.example is xn--bcher-kva.example. Whatever takes a
// name from a user or a peer converts it once, so that everything behind it compares and
// sends one spelling.
package hostname
