// Package textfile reads the text files that a user names: the configuration, tokens,
// passwords, keys, certificates, request headers and so on. Every package that reads such
// a file reads it here, so that all of them accept the same files:
//
//   - A UTF-8 byte order mark at the beginning is skipped. UTF-16 is an error that says so.
//   - The size is bounded.
//   - A file that is not a regular file, such as a pipe, is read once. Its content is kept
//     until the process ends, since a second read would find nothing or wait for ever.
package textfile
