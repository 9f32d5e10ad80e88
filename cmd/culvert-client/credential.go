package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"culvert/auth"
	"culvert/auth/textfile"
	"culvert/cmd/internal/program"
	"culvert/config"
	"culvert/mux/carrier"
)

// newCredential returns what gives the client its credential, nil for none. A file
// is read now, to tell what is wrong with it, and again at each dial. A command is run
// at each dial only: it may take its time, or ask somebody. It ends with ctx.
func newCredential(ctx context.Context, cfg *config.Client, stderr io.Writer) (credential func() (string, error), warnings []string, err error) {
	switch {
	case cfg.TokenCommand != "":
		credential = func() (string, error) { return runTokenCommand(ctx, cfg.TokenCommand, program.Unfailing(stderr)) }
	case cfg.User != "":
		password := func() (string, []string, error) {
			return cfg.Password.Reveal(), nil, auth.CheckPassword(cfg.Password.Reveal())
		}
		if cfg.PasswordFile != "" {
			password = func() (string, []string, error) { return auth.ReadPassword(cfg.PasswordFile) }
		}
		if _, warnings, err = password(); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) {
			text, _, err := password()
			return carrier.Basic(cfg.User, text), err
		}
	case cfg.TokenFile != "":
		if _, warnings, err = auth.ReadToken(cfg.TokenFile); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) {
			token, _, err := auth.ReadToken(cfg.TokenFile)
			return token, err
		}
	case !cfg.Token.Empty():
		if warnings, err = auth.CheckToken(cfg.Token.Reveal()); err != nil {
			return nil, nil, err
		}
		credential = func() (string, error) { return cfg.Token.Reveal(), nil }
	}
	return credential, warnings, nil
}

const (
	// tokenPatience is how long a command may take to print a token.
	tokenPatience = 30 * time.Second
	// maxTokenOutput bounds what is kept of what it prints, in bytes.
	maxTokenOutput = 64 << 10
	// tokenRest is how long the output of a command is read on after its end: it may
	// have left a process behind that holds it open for ever.
	tokenRest = 500 * time.Millisecond
)

var errNoToken = errors.New("has printed nothing")

// runTokenCommand has the shell run a command and returns the first line that it
// prints, without spaces around it. What it writes to its standard error goes to
// stderr, and a stderr that fails makes the command fail. A command that takes too long
// is killed with every process that it started; one that has ended may leave processes
// behind. An error never shows what it printed.
func runTokenCommand(ctx context.Context, command string, stderr io.Writer) (token string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, tokenPatience, fmt.Errorf("has not ended within %v", tokenPatience))
	defer cancel()
	var printed beginning
	cmd := shell(ctx, command)
	cmd.Stdout, cmd.Stderr = &printed, stderr
	cmd.WaitDelay = tokenRest
	if err = cmd.Run(); errors.Is(err, exec.ErrWaitDelay) { // it has ended, with exit status 0
		err = nil
	}
	text, notText := textfile.Text(printed.text)
	line, _, _ := bytes.Cut(text, []byte("\n"))
	token = strings.TrimSpace(string(line))
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case err == nil && notText != nil:
		err = notText
	case err == nil && token == "":
		err = errNoToken
	}
	if err != nil {
		return "", fmt.Errorf("token command: %w", err)
	}
	return token, nil
}

// beginning keeps the beginning of what is written to it.
type beginning struct{ text []byte }

func (b *beginning) Write(p []byte) (int, error) {
	b.text = append(b.text, p[:min(len(p), maxTokenOutput-len(b.text))]...)
	return len(p), nil
}
