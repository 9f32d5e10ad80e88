// Command culvert-server is the end of the tunnels of culvert-clients: it dials the
// targets of their -L forwards and listens for their -R forwards.
package main

import (
	"context"
	"io"
	"log"
	"os"

	"culvert/cmd/internal/program"
	"culvert/config"
)

func main() {
	log.SetOutput(io.Discard) //nolint:forbidigo // net/http uses it, and shows what peers send as it is
	os.Exit(run(context.Background(), os.Args, os.Stdin, os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	return program.Program{
		Name:    "culvert-server",
		Summary: "the server's end of TCP through anything that lets HTTP pass",
		Options: config.ServerOptions(),
		Prepare: func(src config.Sources, stderr io.Writer) (*program.Job, error) { return prepare(src, stdout, stderr) },
		Commands: []*program.Command{
			checkCommand(), explainCommand(), tokenCommand(), passwordCommand(stdin),
			program.Keygen("server.key", "give clients the line with --server-key"),
		},
	}.Run(ctx, args, stdout, stderr)
}
