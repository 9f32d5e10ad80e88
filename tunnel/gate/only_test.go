package gate_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const root = "../.."

// openers are what a socket could be opened with, by package; "*" is all of it.
var openers = map[string][]string{
	"net": {
		"Dial", "DialTimeout", "DialTCP", "DialUDP", "DialIP", "DialUnix", "Dialer",
		"Listen", "ListenPacket", "ListenTCP", "ListenUDP", "ListenIP", "ListenUnix", "ListenUnixgram", "ListenMulticastUDP", "ListenConfig",
		"FileConn", "FileListener", "FilePacketConn",
	},
	"crypto/tls": {"Dial", "DialWithDialer", "Dialer", "Listen"},
	"net/http": {
		"Get", "Head", "Post", "PostForm", "Client", "DefaultClient", "Transport", "DefaultTransport",
		"ListenAndServe", "ListenAndServeTLS",
	},
	"net/http/httputil":          {"ReverseProxy", "NewSingleHostReverseProxy"},
	"net/textproto":              {"Dial"},
	"net/rpc":                    {"*"},
	"net/rpc/jsonrpc":            {"*"},
	"net/smtp":                   {"*"},
	"log/syslog":                 {"*"},
	"plugin":                     {"*"},
	"C":                          {"*"},
	"golang.org/x/net/proxy":     {"*"},
	"golang.org/x/net/websocket": {"*"},
	"syscall":                    systemCalls,
	"golang.org/x/sys/unix":      systemCalls,
	"golang.org/x/sys/windows":   systemCalls,
	"github.com/coder/websocket": {"Dial"},
	"culvert/mux/carrier":        {"Dialer"},                // reaches any server
	"culvert/auth":               {"NewGuard", "Everybody"}, // would grant what its maker likes
}

var systemCalls = []string{
	"Socket", "Socketpair", "Connect", "ConnectEx", "Bind", "Listen", "Accept", "Accept4", "AcceptEx",
	"Syscall", "Syscall6", "SyscallN", "RawSyscall", "RawSyscall6", "SyscallNoError", "NewLazyDLL", "NewLazySystemDLL", "LoadDLL",
}

// exceptions are the files that may use some of it, and why no stream gets around
// the gate there.
var exceptions = []struct {
	file, why string
	uses      []string
}{
	{"tunnel/gate/gate.go", "the gate: what it opens it has a grant for", []string{"net.Dialer", "net.ListenConfig"}},
	{"tunnel/server.go", "the listener that clients connect to, at the address in the configuration", []string{"net.ListenConfig"}},
	{"tunnel/watch.go", "asks the system for a route; nothing is sent and the socket is closed at once", []string{"net.Dialer"}},
	{"tunnel/client.go", "the way to the client's server, and the guard of the client's own forwards", []string{"carrier.Dialer", "auth.NewGuard"}},
	{"tunnel/doctor.go", "tries the way to the client's server; there are no streams", []string{"carrier.Dialer"}},
	{"tunnel/doctor_limits.go", "tries the way to the client's server; there are no streams", []string{"carrier.Dialer"}},
	{"tunnel/doctor_forwards.go", "tries the way to the client's server; targets of forwards are dialled with a grant of the client's guard", []string{"carrier.Dialer"}},
	{"mux/carrier/dial.go", "the client's way to its server", []string{"net.Dialer", "http.Client", "http.Transport", "websocket.Dial"}},
	{"mux/carrier/pipe_dial.go", "the client's way to its server", []string{"http.Transport"}},
	{"mux/carrier/inspect.go", "what is on the client's way to its server", []string{"http.Transport"}},
	{"auth/jwks/source.go", "fetches the keys of an issuer, from the URL in the configuration", []string{"http.Client"}},
	{"cmd/internal/front/acme.go", "asks the authority in the configuration for certificates", []string{"http.Client", "http.Transport"}},
	{"cmd/internal/front/fallback.go", "passes strangers' requests on to the one web server in the configuration", []string{"httputil.ReverseProxy", "http.Transport", "net.Dialer"}},
	{"cmd/culvert-server/web.go", "the listener of ACME's challenges, at the address in the configuration", []string{"net.ListenConfig"}},
	{"cmd/culvert-server/explain.go", "a guard that is asked and grants nothing", []string{"auth.NewGuard"}},
	{"cmd/culvert-server/server.go", "the guard of the configured identities", []string{"auth.NewGuard"}},
	{"cmd/culvert-client/demo_site.go", "the site that the demonstration visits", []string{"net.ListenConfig"}},
	{"cmd/culvert-client/demo_cutter.go", "the bad network of the demonstration", []string{"net.ListenConfig", "net.Dialer"}},
	{"cmd/culvert-client/demo.go", "the visitor of the demonstration, and the guard of its own server", []string{"http.Client", "http.Transport", "auth.NewGuard"}},
}

// TestNothingGoesAroundTheGate looks at every file of the product for what could
// open a socket.
func TestNothingGoesAroundTheGate(t *testing.T) {
	unused := make(map[string]bool)
	for _, e := range exceptions {
		for _, use := range e.uses {
			unused[e.file+": "+use] = true
		}
	}
	files := 0
	err := fs.WalkDir(os.DirFS(root), ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (path == ".git" || path == "test" || path == "mux/carrier/carriertest" || entry.Name() == "testdata"):
			return fs.SkipDir
		case entry.IsDir():
			return nil
		case filepath.Ext(path) == ".s":
			t.Errorf("%s: assembly can open sockets unseen", path)
			return nil
		case filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		files++
		for _, use := range uses(t, path) {
			at := path + ": " + use
			if _, known := unused[at]; !known {
				t.Errorf("%s could open a socket. Streams have theirs opened by tunnel/gate; if this one is none of a stream's, add it to the exceptions and say why", at)
			}
			unused[at] = false
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 50 {
		t.Fatalf("only %d files were looked at", files)
	}
	for at, is := range unused {
		if is {
			t.Errorf("%s is an exception that is not needed", at)
		}
	}
}

// uses are the openers that a file of the product names, as package.Name. Nothing
// can be used that is not named: a method needs a value, and that a type.
func uses(t *testing.T, path string) []string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, path), nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	note := func(use string) {
		if !slices.Contains(found, use) {
			found = append(found, use)
		}
	}
	packages := make(map[string]string) // by their name in this file
	for _, spec := range file.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		name := imported[strings.LastIndexByte(imported, '/')+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		if names := openers[imported]; name == "." && names != nil || slices.Contains(names, "*") {
			note("import of " + imported)
		}
		packages[name] = imported
	}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if strings.HasPrefix(comment.Text, "//go:linkname") {
				note("go:linkname")
			}
		}
	}
	ast.Inspect(file, func(node ast.Node) bool {
		selector, ok := node.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if of, ok := selector.X.(*ast.Ident); ok && slices.Contains(openers[packages[of.Name]], selector.Sel.Name) {
			note(of.Name + "." + selector.Sel.Name)
		} else if name := selector.Sel.Name; name == "ListenAndServe" || name == "ListenAndServeTLS" {
			note(name)
		}
		return true
	})
	return found
}
