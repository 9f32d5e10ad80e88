package program

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"culvert/auth"
	"culvert/config"
)

// KeyFile is the default path of a file with keys, in the user's configuration.
func KeyFile(name string) (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "culvert", name), nil
}

// Keygen is the command that makes a private key, by default in a file of this name,
// and prints the public one; then says what to do with it.
func Keygen(name, then string) *Command {
	var file, comment string
	return &Command{
		Name:    "keygen",
		Summary: "make a private key and print its public half",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "key-file", Usage: "new file to write the private key to", DefaultText: "culvert/" + name + " in the user's configuration", Destination: &file},
			&cli.StringFlag{Name: "comment", Usage: "comment of the public key", DefaultText: "USER@HOST", Destination: &comment},
		},
		Prepare: func(_ config.Sources, stdout, stderr io.Writer) (*Job, error) {
			path := file
			if path == "" {
				var err error
				if path, err = KeyFile(name); err != nil {
					return nil, config.Problems{{Key: "--key-file", What: err.Error(), Hint: "say where to write the key"}}
				}
			}
			return &Job{Log: NewLogger(stderr, "text", 0), Run: func(context.Context) error {
				key := auth.NewPrivateKey(cmp.Or(comment, whoAndWhere()))
				err := key.Save(path)
				if errors.Is(err, fs.ErrExist) {
					return config.Problems{{Key: "--key-file", What: path + " is there already", Hint: "give another, or remove it first"}}
				}
				if err != nil {
					return config.Problems{{Key: "--key-file", What: err.Error(), Hint: "give a file in a folder that can be written to"}}
				}
				fmt.Fprintf(stderr, "The private key is in %s. Fingerprint of the public one: %s.\nIt is this line; %s:\n",
					path, key.Public().Fingerprint(), then)
				_, err = fmt.Fprintln(stdout, key.Public())
				return err
			}}, nil
		},
	}
}

// whoAndWhere is USER@HOST as far as it is known.
func whoAndWhere() string {
	who := "somebody"
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		return who + "@" + host
	}
	return who
}
