// Package seal is the cryptography of a sealed carrier: bytes in, bytes out, no
// input or output, no clock. The handshake is Noise_IK_25519_AESGCM_SHA256
// (noiseprotocol.org): the client knows the server's public key beforehand, says who
// it is in its first message and needs no more than the server's one answer. After it
// each message of a carrier is encrypted and authenticated, in order, between the two
// agents, whoever ends TLS between them.
//
// Package carrier puts the handshake into the upgrade; nobody else calls this one.
// The wire format is PROTOCOL.md, 1.8.
//
// The first message of the handshake can be recorded and played again to the server.
// Only the first message after the handshake shows that a client holds its keys, and
// until it has come nothing may be done for the client that lasts.
package seal
