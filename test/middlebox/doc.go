// Package middlebox runs culvert's two programs with real middleboxes between them.
package middlebox
