package program

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"culvert/auth"
	"culvert/config"
	"culvert/mux"
	"culvert/mux/carrier"
	"culvert/tunnel"
)

// The exit codes.
const (
	exitOK      = 0 // stopped cleanly
	exitFailed  = 1 // a failure that may pass
	exitUsage   = 2 // wrong usage or configuration
	exitRefused = 3 // trying again will not help
)

var errSecondSignal = errors.New("ended by a second signal before everything was closed")

// usageError is a command line that cannot be understood.
type usageError struct {
	what, hint string
}

func (e *usageError) Error() string { return e.what + "; " + e.hint }

// usageError words what the flag package did not understand.
func (p Program) usageError(_ *cli.Context, err error, _ bool) error {
	names := []string{"help", "version"}
	for _, o := range p.Options {
		names = append(names, o.Name)
	}
	return flagError(err, names)
}

// flagError puts an error of the flag package into our words. The package has no types
// for its errors. The flag that the user probably meant is one of names, if any.
func flagError(err error, names []string) error {
	text := err.Error()
	if name, ok := strings.CutPrefix(text, "flag provided but not defined: -"); ok {
		hint := "see --help"
		if near := config.Nearest(name, names); len(name) > 1 && len(near) > 1 { // one letter is near to every other
			hint = "did you mean " + dashed(near) + "?"
		}
		return &usageError{fmt.Sprintf("there is no flag %q", dashed(name)), hint}
	}
	if name, ok := strings.CutPrefix(text, "flag needs an argument: -"); ok {
		return &usageError{dashed(name) + " needs a value", "see --help"}
	}
	return &usageError{text, "see --help"}
}

// dashed is how users write the flag: -L or --local.
func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// report prints err for people, one line for each thing that is wrong, and returns
// the exit code.
func (p Program) report(stderr io.Writer, err error) int {
	var problems config.Problems
	if errors.As(err, &problems) {
		for _, problem := range problems {
			fmt.Fprintf(stderr, "%s: %s\n", p.Name, OneLine(problem.String()))
		}
		return exitUsage
	}
	if servers, ok := errors.AsType[*tunnel.ServersError](err); ok {
		// Whoever may be better at another time makes trying again worth while.
		code := exitRefused
		for _, err := range servers.Errs {
			if p.report(stderr, err) == exitFailed {
				code = exitFailed
			}
		}
		return code
	}
	code, hint := judge(err)
	if err != nil {
		text := OneLine(err.Error())
		if hint != "" {
			text += "; " + hint
		}
		fmt.Fprintf(stderr, "%s: %s\n", p.Name, text)
	}
	return code
}

// judge is the exit code for an error and what to do about it, "" if the error says
// so or there is nothing to say. It is the only place that decides either.
func judge(err error) (code int, hint string) {
	var (
		usage    *usageError
		problems config.Problems
	)
	switch {
	case err == nil:
		return exitOK, ""
	case errors.As(err, &usage), errors.As(err, &problems):
		return exitUsage, ""
	case errors.Is(err, tunnel.ErrConfig), errors.Is(err, carrier.ErrInvalidDialer):
		return exitUsage, ""
	case errors.Is(err, auth.ErrDenied), mux.CodeOf(err) == mux.Denied:
		return exitRefused, deniedHint(err)
	case carrier.Permanent(err):
		return exitRefused, refusedHint(err)
	default:
		return exitFailed, failedHint(err)
	}
}

// Hint is what to do about err, never "".
func Hint(err error) string {
	_, hint := judge(err)
	return cmp.Or(hint, "see whether it happens again; --log-level debug says more")
}

func deniedHint(err error) string {
	if _, ok := errors.AsType[*tunnel.ForwardError](err); ok {
		return "ask who runs the server for a rule that allows it"
	}
	return ""
}

// forwardHint is what to do about a forward that fails for another reason than the
// policy.
func forwardHint(e *tunnel.ForwardError) string {
	where, code := "this machine", mux.CodeOf(e.Err)
	if target, ok := errors.AsType[*tunnel.TargetError](e.Err); ok {
		code = target.Code
	}
	if e.AtFar {
		where = "the server"
	}
	switch {
	case e.Listens:
		return "use another address or port, or end what listens there at the server"
	case code == mux.Refused:
		return "check that a service listens at " + e.Forward.Target + ", as seen from " + where
	}
	return "check the address " + e.Forward.Target + " and the network, as seen from " + where
}

func refusedHint(err error) string {
	var (
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
		pin     *carrier.PinError
		cert    *carrier.CertificateError
		scheme  *carrier.SchemeError
		dial    *carrier.DialError
		key     *carrier.KeyError
		refused *carrier.RefusedError
		proxy   *carrier.ProxyError
	)
	switch {
	case errors.As(err, &proxy):
		switch {
		case !errors.Is(err, carrier.ErrProxyCredential):
			return "ask who runs the proxy for CONNECT to this host and port, or give another with --proxy"
		case !proxy.Credential:
			return "give them with --proxy http://USER:PASSWORD@HOST:PORT, or in the environment (HTTPS_PROXY)"
		case proxy.Stopped != "":
			return "the proxy may want Kerberos, which culvert does not speak: ask who runs it for NTLM, Digest or Basic"
		}
		return "check what --proxy or the environment (HTTPS_PROXY) says"
	case errors.Is(err, carrier.ErrHTTP2Only):
		return "switch HTTP/1.1 on there, for WebSockets and for HTTP requests"
	case errors.As(err, &scheme):
		if errors.As(err, &dial) && dial.Phase == carrier.PhaseTLS {
			return "without TLS everybody on the way can read it: better use the port where the server has TLS, if there is one"
		}
		return ""
	case errors.Is(err, carrier.ErrNotProxy):
		return "check the address and the scheme of the proxy in --proxy or the environment"
	case errors.As(err, &dial) && dial.Phase == carrier.PhaseProxy:
		return proxyCertificateHint(err)
	case errors.As(err, &key):
		return "ask who runs the server: only if the key is new there, give it with --server-key or change the line"
	case errors.Is(err, carrier.ErrFrontUnauthorized):
		return "give --front-user and --front-password-file, or what else it wants with --header-file"
	case errors.Is(err, carrier.ErrUnauthorized):
		return "give a token that the server knows with --token-file, or --user and --password-file"
	case errors.Is(err, carrier.ErrPlaintextCredential):
		return "use wss://, or --allow-plaintext if nobody on the way may do harm"
	case errors.As(err, &pin):
		return "compare it with the key of your server: if that has a new one, give it with --tls-pin; if not, somebody is in the way"
	case errors.As(err, &name):
		return "use the name in the certificate, or say it with --tls-server-name"
	case errors.As(err, &invalid):
		return "check the server's certificate and this machine's clock"
	case errors.As(err, &refused):
		switch {
		case refused.Token == carrier.RefusalSeal:
			return "leave --seal, --server-key and --key-file away, or give the server a key with --key-file"
		case refused.Token == carrier.RefusalVersion:
			return "use the same version of culvert at both ends"
		case refused.Status == http.StatusForbidden:
			return "something on the way or at the server forbids the upgrade"
		case refused.Status == http.StatusRequestHeaderFieldsTooLarge:
			return "use a shorter token, or fewer or shorter headers and cookies, or raise the limit of what answers"
		case refused.Status == http.StatusBadRequest:
			return "check the address, the headers and the length of the token"
		case refused.Status/100 == 3:
			return "check the address and the path, or log in where it redirects to"
		}
		return "check the address, the path and the credential"
	case errors.Is(err, carrier.ErrNotCulvert):
		return "check the address and the path"
	case errors.As(err, &cert) && cert.Given:
		return "no authority in the file of --tls-ca signed it: give the one that did, or have the server send its intermediate certificates"
	default: // a certificate
		return "if the issuer is not your server's, a proxy intercepts TLS: give the authority that is to be trusted with --tls-ca"
	}
}

// proxyCertificateHint is about a proxy's certificate, or its key.
func proxyCertificateHint(err error) string {
	var (
		name    x509.HostnameError
		invalid x509.CertificateInvalidError
	)
	switch {
	case errors.As(err, &name):
		return "give the proxy by the name in its certificate"
	case errors.As(err, &invalid):
		return "check the proxy's certificate and this machine's clock"
	}
	return "give the authority that signed the proxy's certificate with --tls-ca"
}

func failedHint(err error) string {
	var (
		dial   *carrier.DialError
		lookup *net.DNSError
		proxy  *carrier.ProxyError
		op     *net.OpError
		broken *tunnel.ForwardError
	)
	switch {
	case errors.As(err, &broken):
		return forwardHint(broken)
	case errors.As(err, &dial):
		const retry = "--retry-initial keeps trying"
		switch {
		case errors.Is(err, carrier.ErrSeveralServers):
			return "have the load balancer send all requests of a client to one server (sticky sessions), or let WebSocket upgrades pass"
		case errors.As(err, &proxy):
			return "check that the server can be reached from the proxy; " + retry
		case dial.Phase == carrier.PhaseProxy:
			return "check the proxy that --proxy or the environment names; " + retry
		case errors.As(err, &lookup):
			return "check the server's name; " + retry
		case errors.Is(err, syscall.ECONNREFUSED):
			return "check that culvert-server runs there; " + retry
		case dial.Phase == carrier.PhaseTLS && errors.As(err, &op) && op.Op == "remote error":
			return "if the server wants a certificate, give --tls-cert and --tls-key; " + retry
		}
		return retry
	case errors.Is(err, syscall.EADDRINUSE):
		return "use another port, or end what listens there"
	case errors.Is(err, fs.ErrPermission) && errors.Is(err, tunnel.ErrListen):
		return "use a port above 1023, or give the program the right to listen there"
	}
	return ""
}

// OneLine keeps what others say from starting a line of its own or moving the
// cursor.
func OneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
}
