package main

import (
	"fmt"
	"strings"
	"time"

	"culvert/auth"
	"culvert/cmd/internal/program"
	"culvert/config"
)

// newDirectory adds the identities of cfg to c, and is who may connect and what each may
// do, with everything that is wrong with that in problems. before is the directory that
// it follows, nil if it is the first.
func newDirectory(cfg *config.Server, before *auth.Directory, c auth.DirectoryConfig) (d *auth.Directory, warnings []string, problems config.Problems) {
	r := &reader{everything: auth.Everything(), tokens: make(map[[32]byte]config.Text)}
	if cfg.GatewayPorts {
		r.everything.Listen = r.everything.Dial
	}
	if cfg.InsecureNoAuth {
		c.Anybody = &auth.Identity{Policy: r.everything}
	}
	for _, id := range cfg.Identities {
		c.Identities = append(c.Identities, r.identity(id))
	}
	simple := r.simple(cfg)
	if before != nil {
		before.KeepNames(simple)
	}
	c.Identities = append(c.Identities, simple...)
	d, err := auth.NewDirectory(c)
	if err != nil && len(r.problems) == 0 { // which may be why
		for text := range strings.SplitSeq(err.Error(), "\n") {
			r.problems = append(r.problems, config.Problem{File: cfg.File, What: text})
		}
	}
	return d, r.warnings, r.problems
}

// reader turns what config has read into what auth takes.
type reader struct {
	everything auth.Policy              // of who may do everything
	tokens     map[[32]byte]config.Text // by their sums
	warnings   []string
	problems   config.Problems
}

// simple are the identities of the token file, or of the one token.
func (r *reader) simple(cfg *config.Server) []auth.Identity {
	var identities []auth.Identity
	var warnings []string
	var err error
	switch {
	case cfg.TokenFile != "":
		identities, warnings, err = auth.ReadTokens(r.everything, cfg.TokenFile)
	case !cfg.Token.Empty():
		identities, warnings, err = auth.NewTokens(r.everything, cfg.Token.Reveal())
	}
	if err != nil {
		r.problems = append(r.problems, program.BadCredential(err))
	}
	r.warnings = append(r.warnings, warnings...)
	return identities
}

func (r *reader) identity(from config.Identity) auth.Identity {
	id := auth.Identity{
		Name:         from.Name.Value,
		Passwords:    parse(r, from.Passwords, auth.ParsePassword),
		Keys:         parse(r, from.Keys, auth.ParsePublicKey),
		Certificates: parse(r, from.Certificates, auth.ParseCertificateName),
		Limits:       limits(from.Limits),
		Shared:       limits(from.Shared),
	}
	for _, claims := range from.Claims {
		id.Claims = append(id.Claims, claims.Wanted)
	}
	for _, t := range from.Tokens {
		if token, ok := r.token(t); ok {
			id.Tokens = append(id.Tokens, token)
		}
	}
	if id.Policy = r.everything; !from.Everything {
		id.Policy = auth.Policy{
			Dial:   parse(r, from.Dial, auth.ParseRule),
			Listen: parse(r, from.Listen, auth.ParseRule),
		}
	}
	return id
}

func limits(from config.Limits) auth.Limits {
	return auth.Limits{
		Sessions: from.Sessions, Streams: from.Streams, OpensPerSecond: from.OpensPerSecond,
		Upload: int64(from.Upload), Download: int64(from.Download),
		BytesPerDay: int64(from.BytesPerDay), Memory: int64(from.Memory),
	}
}

func (r *reader) token(from config.Token) (t auth.Token, ok bool) {
	sum, err := auth.ParseTokenHash(from.Hash.Value)
	if err != nil {
		r.wrong(from.Hash, err.Error(), "")
		return t, false
	}
	if other, ok := r.tokens[sum]; ok {
		r.wrong(from.Hash, "is the hash of the same token as in "+other.Place(), "keep one of them")
		return t, false
	}
	r.tokens[sum] = from.Hash
	if !from.Expires.IsZero() && !time.Now().Before(from.Expires) {
		r.warnings = append(r.warnings, fmt.Sprintf("%s: this token has expired (%s)", from.Hash.Place(), from.Expires.Format(time.RFC3339)))
	}
	return auth.Token{Sum: sum, Label: from.Label, Expires: from.Expires}, true
}

func (r *reader) wrong(text config.Text, what, hint string) {
	r.problems = append(r.problems, text.Problem(what, hint))
}

// parse gives texts their meaning, and reports those that have none.
func parse[T any](r *reader, texts []config.Text, one func(string) (T, error)) []T {
	var all []T
	for _, text := range texts {
		t, err := one(text.Value)
		if err != nil {
			r.wrong(text, err.Error(), "")
			continue
		}
		all = append(all, t)
	}
	return all
}
