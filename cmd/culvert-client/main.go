// Command culvert-client carries TCP connections to a culvert-server through
// anything that lets HTTP pass: forwards of the -L kind listen here and are dialled
// from the server, forwards of the -R kind the other way round.
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
		Name:    "culvert-client",
		Summary: "TCP through one WebSocket, and every stream alive when it is cut",
		Options: config.ClientOptions(),
		Ignored: []string{"N"}, // ssh's "no command": this client never runs one
		Prepare: func(src config.Sources, stderr io.Writer) (*program.Job, error) { return prepare(src, stdin, stderr) },
		Commands: []*program.Command{
			checkCommand(), doctorCommand(), demoCommand(),
			program.Keygen("key", "have the line added to your identity's keys at the server"),
		},
	}.Run(ctx, args, stdout, stderr)
}
