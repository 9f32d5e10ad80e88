// Package docs checks what is written about the code: links that lead somewhere, a doc.go in every
// package, and a reference for every option. Other tests take the commands of a page from [Blocks] and
// run them.
package docs
