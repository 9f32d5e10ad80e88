// Package bandwidth divides a number of bytes per second among those who want to
// send: first among identities, then among the streams of each. It is a token bucket
// for all of it, one for each identity, and turns: a stream waits for its turn to
// send a little, about a hundredth of a second's worth, and then stands at the end of
// its identity's row again. So the bytes flow smoothly, and neither many streams nor
// a late return gets anybody more than the others have.
//
// It knows nothing of what is sent. All methods are safe for concurrent use.
package bandwidth
