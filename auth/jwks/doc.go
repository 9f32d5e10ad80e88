// Package jwks fetches the public keys of an issuer of signed tokens over HTTP, so
// that package auth opens no socket. A [Source] is an auth.KeySource.
//
// Strangers can make a server look for keys, by tokens of invented names, so the
// keys are kept, and the issuer is asked at most once in ten seconds whatever
// comes. While it cannot be reached, the keys that it had go on to count.
package jwks
