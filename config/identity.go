package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/goccy/go-yaml/ast"

	"culvert/auth/textfile"
)

// Text is a value of the configuration that another package gives its meaning to,
// and where it stands.
type Text struct {
	Value  string
	origin origin
}

// Problem says what is wrong with t, which stands at t's place.
func (t Text) Problem(what, hint string) Problem { return t.origin.problem(what, hint) }

// Place is where t stands, "FILE:LINE".
func (t Text) Place() string { return t.origin.String() }

// Identity is somebody who may connect to the server, as the configuration has it.
type Identity struct {
	Name Text // not empty, of visible characters but the slash

	Tokens       []Token
	Passwords    []Text // hashes
	Keys         []Text // public keys
	Certificates []Text // names
	Claims       []Claims

	// Everything stands for the policy of a server with one user. Then there are no
	// rules.
	Everything   bool
	Dial, Listen []Text // rules

	Limits Limits
	Shared Limits // of all subjects of its claims together; without Memory
}

// Token is the hash of a token.
type Token struct {
	Hash    Text
	Label   string    // for logs
	Expires time.Time // zero: never
}

// Claims are what a signed token must say of its holder, all of it: each claim has
// or holds one of the texts.
type Claims struct {
	Place  Text // of the first of them; no value
	Wanted map[string][]string
}

// Limits bound an identity. 0 is no limit but the server's.
type Limits struct {
	Sessions       int
	Streams        int // of all its sessions
	OpensPerSecond int
	Upload         Size // a second, towards targets
	Download       Size // a second, from targets
	BytesPerDay    Size // both ways, UTC
	Memory         Size // buffered bytes of all its sessions
}

func (l *Limits) options() []Option {
	const most = 1 << 20
	return []Option{
		{Name: "sessions", min: 1, max: most, target: &l.Sessions},
		{Name: "streams", min: 1, max: most, target: &l.Streams},
		{Name: "opens-per-second", min: 1, max: most, target: &l.OpensPerSecond},
		{Name: "upload", min: 1 << 10, max: 1 << 40, target: &l.Upload},
		{Name: "download", min: 1 << 10, max: 1 << 40, target: &l.Download},
		{Name: "bytes-per-day", min: 1 << 10, max: 1 << 50, target: &l.BytesPerDay},
		{Name: "memory", min: 1 << 20, max: 1 << 40, target: &l.Memory},
	}
}

// sharedOptions are those of limits of all subjects together.
func (l *Limits) sharedOptions() []Option {
	return slices.DeleteFunc(l.options(), func(o Option) bool { return o.Name == "memory" })
}

// Issuer is who signs tokens that let in.
type Issuer struct {
	Issuer   Text // the claim iss
	Audience Text // the claim aud
	Keys     Text // file or URL
}

// identitiesOf reads a mapping of names to identities.
func (d *decoder) identitiesOf(path string, at, node ast.Node) (all []Identity) {
	root, ok := d.object(path, at, node, "a mapping of names to identities")
	if !ok {
		return nil
	}
	d.pairs(path, root, nil, func(name string, key, node ast.Node) {
		place := below(path, name)
		if what := wrongName(name); what != "" {
			d.report(key, place, "give it a name of visible characters without spaces and slashes", "%s", what)
			return
		}
		if id, ok := d.identity(place, Text{name, d.at(key, place)}, key, node); ok {
			all = append(all, id)
		}
	})
	return all
}

// maxName bounds the name of an identity in bytes: it is in every line of the log.
const maxName = 128

// wrongName says what is wrong with the name of an identity, "" if nothing is.
func wrongName(name string) string {
	switch {
	case name == "":
		return "is an identity without a name"
	case len(name) > maxName:
		return fmt.Sprintf("is a name of more than %d characters", maxName)
	case strings.ContainsFunc(name, func(r rune) bool { return r == '/' || !unicode.IsGraphic(r) || unicode.IsSpace(r) }):
		return "is not a name for an identity"
	}
	return ""
}

// identity reads one identity. It is not ok when there is nothing in it to read.
func (d *decoder) identity(path string, name Text, at, node ast.Node) (id Identity, ok bool) {
	id.Name = name
	root, ok := d.object(path, at, node, "its credentials and what it may do")
	if !ok {
		return id, false
	}
	var allow Text
	d.fields(path, root,
		Option{Name: "tokens", target: func(path string, at, node ast.Node) {
			d.list(path, at, node, "a list of tokens", func(at, node ast.Node) {
				if t, ok := d.token(path, at, node); ok {
					id.Tokens = append(id.Tokens, t)
				}
			})
		}},
		Option{Name: "passwords", target: &id.Passwords},
		Option{Name: "keys", target: &id.Keys},
		Option{Name: "certificates", target: &id.Certificates},
		Option{Name: "claims", target: func(path string, at, node ast.Node) {
			d.list(path, at, node, "a list of claims", func(at, node ast.Node) {
				if c, ok := d.claims(path, at, node); ok {
					id.Claims = append(id.Claims, c)
				}
			})
		}},
		Option{Name: "allow", choices: []string{"everything"}, target: &allow},
		Option{Name: "dial", target: &id.Dial},
		Option{Name: "listen", target: &id.Listen},
		Option{Name: "limits", target: func(path string, at, node ast.Node) {
			if root, ok := d.object(path, at, node, "a mapping of limits"); ok {
				d.fields(path, root, id.Limits.options()...)
			}
		}},
		Option{Name: "shared-limits", target: func(path string, at, node ast.Node) {
			if root, ok := d.object(path, at, node, "a mapping of limits"); ok {
				d.fields(path, root, id.Shared.sharedOptions()...)
			}
		}},
	)
	if id.Everything = allow.Value != ""; id.Everything {
		for _, rule := range [][]Text{id.Dial, id.Listen} {
			if len(rule) > 0 {
				d.problems = append(d.problems, rule[0].Problem(
					fmt.Sprintf("is given together with allow: everything (%s)", allow.Place()), "give one of the two"))
			}
		}
	}
	return id, true
}

// token reads {hash: ..., label: ..., expires: ...}, or a hash alone.
func (d *decoder) token(path string, at, node ast.Node) (t Token, ok bool) {
	if text, alone := node.(*ast.StringNode); alone {
		return Token{Hash: Text{text.Value, d.at(node, path)}}, true
	}
	root, ok := d.object(path, at, node, `{hash: "sha256:...", label: ..., expires: ...}`)
	if !ok {
		return t, false
	}
	if it := root.MapRange(); it.Next() && it.Key().GetToken().Value == "sha256" { // what the parser makes of [sha256:...]
		d.report(at, path, "put it in quotes", "is a mapping")
		return t, false
	}
	before := len(d.problems)
	d.fields(path, root,
		Option{Name: "hash", target: &t.Hash},
		Option{Name: "label", target: &t.Label},
		Option{Name: "expires", target: &t.Expires},
	)
	if t.Hash.Value == "" && len(d.problems) == before {
		d.report(at, path, "give the hash that culvert-server token new printed", "has no hash")
	}
	return t, t.Hash.Value != ""
}

// claims reads {claim: text or list of texts}.
func (d *decoder) claims(path string, at, node ast.Node) (c Claims, ok bool) {
	root, ok := d.object(path, at, node, "a mapping of claims to their values")
	if !ok {
		return c, false
	}
	c = Claims{Place: Text{origin: d.at(at, path)}, Wanted: make(map[string][]string)}
	d.pairs(path, root, nil, func(name string, key, node ast.Node) {
		var wanted []Text
		d.field(Option{Name: below(path, name), target: &wanted}, key, node)
		for _, text := range wanted {
			c.Wanted[name] = append(c.Wanted[name], text.Value)
		}
	})
	return c, len(c.Wanted) > 0
}

// issuersOf reads a list of issuers.
func (d *decoder) issuersOf(path string, at, node ast.Node) (all []Issuer) {
	d.list(path, at, node, "a list of issuers", func(at, node ast.Node) {
		root, ok := d.object(path, at, node, "{issuer: URL, audience: TEXT, keys: FILE-or-URL}")
		if !ok {
			return
		}
		var i Issuer
		before := len(d.problems)
		fields := []Option{
			{Name: "issuer", target: &i.Issuer},
			{Name: "audience", target: &i.Audience},
			{Name: "keys", file: func(text string) bool { return !strings.Contains(text, "://") }, target: &i.Keys},
		}
		d.fields(path, root, fields...)
		for _, f := range fields {
			if f.target.(*Text).Value == "" && len(d.problems) == before {
				d.report(at, path, "give issuer, audience and keys", "has no %s", f.Name)
			}
		}
		if len(d.problems) == before {
			all = append(all, i)
		}
	})
	return all
}

// maxIdentityFiles bounds the files in a directory of identities.
const maxIdentityFiles = 10_000

// IdentityFiles are the files of a directory of identities: those whose names end in
// .yaml or .yml and do not begin with a dot, in the order of their names.
func IdentityFiles(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); !e.IsDir() && !strings.HasPrefix(e.Name(), ".") && (ext == ".yaml" || ext == ".yml") {
			files = append(files, filepath.Join(dir, e.Name()))
		}
	}
	if len(files) > maxIdentityFiles {
		return nil, &fs.PathError{Op: "read", Path: dir, Err: fmt.Errorf("more than %d files", maxIdentityFiles)}
	}
	return files, nil
}

// readIdentities returns the identities of all files of a directory.
func (l *loader) readIdentities(dir string) (all []Identity) {
	files, err := IdentityFiles(dir)
	if err != nil {
		l.problem("identities-dir", 0, "give a directory with files of identities, *.yaml", "%s %s", dir, cause(err))
		l.rejected["identities-dir"] = true
		return nil
	}
	for _, file := range files {
		data, err := textfile.Read(file, maxFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was just removed
		}
		if err != nil {
			l.problems = append(l.problems, Problem{File: file, What: cause(err), Hint: "check it, or take it out of the directory"})
			continue
		}
		identities, problems := decodeIdentities(file, data)
		all = append(all, identities...)
		l.problems = append(l.problems, problems...)
		l.rejected["identities-dir"] = l.rejected["identities-dir"] || len(problems) > 0
	}
	return all
}

// decodeIdentities reads a file with nothing but identities.
func decodeIdentities(name string, data []byte) ([]Identity, Problems) {
	d := newDecoder(name)
	var all []Identity
	if body := d.body(data); body != nil {
		all = d.identitiesOf("", body, body)
	}
	return all, d.problems
}

// checkIdentities reports identities that are there twice, and warns of those that
// are of no use.
func (l *loader) checkIdentities(identities []Identity) {
	first := make(map[string]Text)
	for _, id := range identities {
		name := id.Name.Value
		if other, ok := first[name]; ok {
			l.problems = append(l.problems, id.Name.Problem(fmt.Sprintf("is there again, first in %s", other.Place()), "keep one of them"))
			continue
		}
		first[name] = id.Name
		if len(id.Tokens)+len(id.Passwords)+len(id.Keys)+len(id.Certificates)+len(id.Claims) == 0 {
			l.warn(fmt.Sprintf("%s: identity %s has no credential, so nobody can be it", id.Name.Place(), name))
		}
		if !id.Everything && len(id.Dial)+len(id.Listen) == 0 {
			l.warn(fmt.Sprintf("%s: identity %s may do nothing; give it dial or listen rules, or allow: everything", id.Name.Place(), name))
		}
	}
}
