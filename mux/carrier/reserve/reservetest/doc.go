// Package reservetest makes descriptors few, for tests of what is kept in reserve. Its tests
// cannot run beside others of the same process.
package reservetest
