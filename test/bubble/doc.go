// Package bubble runs tests in the bubbles of testing/synctest, where time is fake.
package bubble
