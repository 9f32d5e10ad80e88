// Package config turns command-line flags, environment variables and a YAML file
// into one typed, checked struct for each agent: [Client] and [Server].
//
// Each agent has one table of [Option] values, [ClientOptions] and
// [ServerOptions]. It is the only place where a setting's name, default, limits
// and help text stand: flags, variables, file keys, validation, --help and the
// README's tables are all made from it. A new setting is a struct field and a row
// of a table.
//
// A flag is stronger than the environment, the environment than the file, the
// file than the default. A list replaces a weaker source's list as a whole. All
// that is wrong in all sources is reported at once, as [Problems], each with
// where it stands, what is wrong and what to do.
//
// A relative path in a file begins at the directory of the file, one in a flag or a
// variable at the working directory. Paths in the structs are absolute.
//
// The server's file has two keys with forms of their own, which are no options:
// identities and issuers. What stands in them is read into structs of texts, each
// with its place; what the texts mean is for others to say.
//
// The package reads the configuration file and the directory of identities, and
// nothing else: it opens no other file and no socket, and does not look into
// credentials. cmd calls it and passes the values on.
package config
