package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"golang.org/x/term"

	"culvert/auth"
	"culvert/auth/textfile"
	"culvert/cmd/internal/program"
	"culvert/config"
)

// weakPassword is the number of characters below which a password is reported as
// guessable.
const weakPassword = 12

// passwordCommand prints the hash of a password, which is what the server's
// configuration has of it.
func passwordCommand(stdin io.Reader) *program.Command {
	return &program.Command{
		Name:    "password",
		Summary: "read a password, print the hash of it that goes into the configuration",
		Prepare: func(_ config.Sources, stdout, stderr io.Writer) (*program.Job, error) {
			run := func(ctx context.Context) error {
				password, err := readPassword(ctx, stdin, stderr)
				if err == nil {
					err = auth.CheckPassword(password)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
				if err != nil {
					return config.Problems{{Key: "password", What: err.Error(), Hint: "type it, or give it on standard input in one line"}}
				}
				if len(password) < weakPassword {
					fmt.Fprintf(stderr, "it has %d characters and can be guessed; use %d or more\n", len(password), weakPassword)
				}
				_, err = fmt.Fprintln(stdout, auth.HashPassword(password))
				return err
			}
			return &program.Job{Run: run, Log: slog.New(slog.DiscardHandler)}, nil
		},
	}
}

// readPassword reads a password from a terminal, twice and unseen, or the one line
// that stdin has.
func readPassword(ctx context.Context, stdin io.Reader, prompts io.Writer) (string, error) {
	file, ok := stdin.(*os.File)
	if !ok || !term.IsTerminal(int(file.Fd())) {
		return readLine(stdin)
	}
	var typed [2]string
	for i, prompt := range []string{"Password: ", "The same again: "} {
		fmt.Fprint(prompts, prompt)
		line, err := readUnseen(ctx, int(file.Fd()))
		fmt.Fprintln(prompts)
		if err != nil {
			return "", err
		}
		typed[i] = line
	}
	if typed[0] != typed[1] {
		return "", errors.New("the two are not the same")
	}
	return typed[0], nil
}

// readUnseen reads a line without echo. The end of ctx leaves the terminal as it was,
// and the read behind, which only the process's end ends.
func readUnseen(ctx context.Context, terminal int) (string, error) {
	before, err := term.GetState(terminal)
	if err != nil {
		return "", err
	}
	var line []byte
	read := make(chan error, 1)
	go func() {
		var err error
		line, err = term.ReadPassword(terminal)
		read <- err
	}()
	select {
	case err := <-read:
		return string(line), err
	case <-ctx.Done():
		_ = term.Restore(terminal, before)
		return "", ctx.Err()
	}
}

// readLine reads one line, and nothing may follow it.
func readLine(r io.Reader) (string, error) {
	const most = 4 << 10 // longer than any password
	data, err := io.ReadAll(io.LimitReader(r, most))
	if err != nil {
		return "", err
	}
	text, err := textfile.Text(data)
	return strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r"), err
}
