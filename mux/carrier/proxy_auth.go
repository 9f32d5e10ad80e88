package carrier

import (
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"slices"
	"strings"
	"sync"

	"github.com/Azure/go-ntlmssp"
	"github.com/icholy/digest"
)

// proxySchemes are the ways to authenticate, the safest first: of those that a proxy
// offers, the first is taken. This is curl's order.
//
//   - Digest (RFC 7616) does not show the password, and belongs to no connection.
//   - NTLM, also under the name Negotiate, does not show it either, but more can be
//     guessed from its messages, and all of them need one connection.
//   - Basic (RFC 7617) shows the password to everybody who reads the connection.
var proxySchemes = []string{digestScheme, ntlmScheme, negotiateScheme, basicScheme}

const (
	digestScheme    = "Digest"
	ntlmScheme      = "NTLM"
	negotiateScheme = "Negotiate"
	basicScheme     = "Basic"
)

// proxyAuth authenticates one CONNECT request to an HTTP proxy (RFC 9110, 11.7).
//
// When a proxy refuses the password, no other scheme is tried: the same wrong
// password in each of them locks accounts. When a scheme ends before the password
// was used, the next one is tried.
type proxyAuth struct {
	proxyAccount
	target string       // of the CONNECT request
	memory *proxyMemory // of earlier dials; may be nil

	offered  []string // challenges of the last 407
	schemes  []string // of all of them: an NTLM challenge comes without the other schemes
	begun    []string // schemes that this dial has used, the current one last
	stopped  string   // the last scheme that ended before the password was used
	recalled bool     // the last credential was sent because an earlier dial had success with it
	renewed  bool     // Digest: a second nonce was used
	step     int      // NTLM: messages sent
	digest   *digestNonce
	sent     []string // what an error must not show
}

// proxyAccount is a user of a proxy.
type proxyAccount struct{ addr, user, password string }

// scheme is the current one, "" before the first.
func (a *proxyAuth) scheme() string {
	if len(a.begun) == 0 {
		return ""
	}
	return a.begun[len(a.begun)-1]
}

// tried is the scheme in which the proxy has got the password, "" for none.
func (a *proxyAuth) tried() string {
	switch scheme := a.scheme(); scheme {
	case ntlmScheme, negotiateScheme:
		if a.step < 2 {
			return ""
		}
		return scheme
	default:
		return scheme
	}
}

// bound reports whether the next message must use the connection of the last one.
func (a *proxyAuth) bound() bool { return a.step == 2 }

// recall returns the Proxy-Authorization that an earlier dial had success with, ""
// if there was none.
func (a *proxyAuth) recall() string {
	scheme, nonce := a.memory.recall(a.proxyAccount)
	if scheme == "" {
		return ""
	}
	a.recalled = true
	a.begun = append(a.begun, scheme)
	switch scheme {
	case digestScheme:
		return a.say(a.answerNonce(nonce))
	case basicScheme:
		return a.say(basicScheme + " " + basic(a.user, a.password))
	default:
		return a.say(a.negotiate(scheme))
	}
}

// accepted notes that the proxy has accepted the last credential.
func (a *proxyAuth) accepted() {
	if a.scheme() != "" {
		a.memory.keep(a.proxyAccount, a.scheme(), a.digest)
	}
}

// answer returns the Proxy-Authorization that answers the challenges of a 407, "" if
// the proxy has refused the password, or there is no scheme left to try.
func (a *proxyAuth) answer(offered []string) string {
	recalled := a.recalled
	a.offered, a.recalled = offered, false
	a.schemes = append(a.schemes, schemesOf(offered)...)
	if recalled {
		a.memory.forget()
	}
	switch scheme := a.scheme(); scheme {
	case "":
		return a.next()
	case digestScheme:
		if recalled && !a.offers(scheme) {
			return a.next()
		}
		if a.renewed {
			return ""
		}
		a.renewed = true
		return a.say(a.answerDigest(!recalled))
	case basicScheme:
		if recalled && !a.offers(scheme) {
			return a.next()
		}
		return ""
	default:
		if a.step > 1 {
			return ""
		}
		if message := a.authenticate(scheme); message != "" {
			return a.say(message)
		}
		a.stopped = scheme
		return a.next()
	}
}

// next begins with the next scheme that the proxy offers, on a new connection. It
// returns "" if there is none.
func (a *proxyAuth) next() string {
	a.step = 0
	for _, scheme := range proxySchemes {
		if !a.untried(scheme) {
			continue
		}
		var answer string
		switch scheme {
		case digestScheme:
			answer = a.answerDigest(false)
		case basicScheme:
			answer = basicScheme + " " + basic(a.user, a.password)
		default:
			answer = a.negotiate(scheme)
		}
		if answer != "" {
			a.begun = append(a.begun, scheme)
			return a.say(answer)
		}
	}
	return ""
}

// alternative reports whether next would find a scheme.
func (a *proxyAuth) alternative() bool {
	return slices.ContainsFunc(proxySchemes, a.untried)
}

func (a *proxyAuth) untried(scheme string) bool {
	return slices.Contains(a.schemes, scheme) && !slices.Contains(a.begun, scheme)
}

// offers reports whether the last 407 has the scheme.
func (a *proxyAuth) offers(scheme string) bool { return slices.Contains(schemesOf(a.offered), scheme) }

// say notes what is sent, and returns it.
func (a *proxyAuth) say(answer string) string {
	if _, credential, ok := strings.Cut(answer, " "); ok {
		a.sent = append(a.sent, answer, credential)
	}
	return answer
}

// basic is a credential of RFC 7617.
func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// digestNonce is a Digest challenge, and how often it was answered.
type digestNonce struct {
	challenge *digest.Challenge
	count     int
}

// answerDigest answers the first Digest challenge that it can, as RFC 7616 (3.7)
// wants it; with onlyStale, the first one that says that the last nonce was too old.
func (a *proxyAuth) answerDigest(onlyStale bool) string {
	for _, challenge := range a.offered {
		if !digest.IsDigest(challenge) {
			continue
		}
		c, err := digest.ParseChallenge(challenge)
		if err != nil || !digest.CanDigest(c) || onlyStale && !c.Stale {
			continue
		}
		if answer := a.answerNonce(&digestNonce{c, 1}); answer != "" {
			return answer
		}
	}
	return ""
}

func (a *proxyAuth) answerNonce(n *digestNonce) string {
	answer, err := digest.Digest(n.challenge, digest.Options{
		Method: http.MethodConnect, URI: a.target, Username: a.user, Password: a.password, Count: n.count,
	})
	if err != nil {
		return ""
	}
	a.digest = n
	a.sent = append(a.sent, answer.Response)
	return answer.String()
}

// negotiate is the first message of NTLM. The password is not in it.
func (a *proxyAuth) negotiate(scheme string) string {
	message, err := ntlmssp.NewNegotiateMessage("", "")
	if err != nil {
		return ""
	}
	a.step = 1
	return scheme + " " + base64.StdEncoding.EncodeToString(message)
}

// authenticate answers the proxy's NTLM challenge, "" if there is none that it
// understands.
func (a *proxyAuth) authenticate(scheme string) string {
	for _, challenge := range a.offered {
		offered, token, _ := strings.Cut(challenge, " ")
		if !strings.EqualFold(offered, scheme) {
			continue
		}
		message, err := base64.StdEncoding.DecodeString(strings.TrimSpace(token))
		if err != nil {
			continue
		}
		answer, err := ntlmssp.NewAuthenticateMessage(ntlmChallenge(message), a.user, a.password, nil)
		if err == nil {
			a.step = 2
			return scheme + " " + base64.StdEncoding.EncodeToString(answer)
		}
	}
	return ""
}

// ntlmChallenge returns a challenge message (MS-NLMP, 2.2.1.2) without what
// go-ntlmssp takes for malformed and does not need. Squid's ntlm_fake_auth, and other
// servers of the time before NTLMv2, send no target information where the flags say
// that there is some, and the target's name in ASCII where they say Unicode.
func ntlmChallenge(message []byte) []byte {
	const name, infoLength, infoOffset, end = 12, 40, 44, 48
	c := make([]byte, max(len(message), end))
	copy(c, message)
	clear(c[name : name+8])
	length, offset := int(binary.LittleEndian.Uint16(c[infoLength:])), int(binary.LittleEndian.Uint32(c[infoOffset:]))
	if len(message) < end || offset < end || offset+length > len(message) {
		clear(c[infoLength:end])
	}
	return c
}

// proxyMemory is which credential a proxy has accepted, so that later dials send it
// with their first request. Its methods may be called concurrently, and on nil.
type proxyMemory struct {
	mu      sync.Mutex // guards the following
	account proxyAccount
	scheme  string // "" if nothing is known
	digest  digestNonce
}

// recall returns the scheme that was accepted for the account, "" if none was, and for
// Digest the nonce to answer.
func (m *proxyMemory) recall(account proxyAccount) (scheme string, nonce *digestNonce) {
	if m == nil {
		return "", nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.account != account {
		return "", nil
	}
	m.digest.count++ // each use of a nonce has a number of its own
	n := m.digest
	return m.scheme, &n
}

func (m *proxyMemory) keep(account proxyAccount, scheme string, nonce *digestNonce) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.account, m.scheme = account, scheme
	if nonce != nil && m.digest.challenge != nonce.challenge {
		m.digest = *nonce
	}
}

func (m *proxyMemory) forget() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.scheme = ""
}

// maxSchemes bounds the schemes that an error names.
const maxSchemes = 8

// schemesOf returns the schemes of challenges, each once, with the spelling of
// the RFC where it is one of ours.
func schemesOf(challenges []string) []string {
	var schemes []string
	for _, challenge := range challenges {
		scheme, _, _ := strings.Cut(challenge, " ")
		for _, known := range proxySchemes {
			if strings.EqualFold(scheme, known) {
				scheme = known
			}
		}
		if !slices.Contains(schemes, scheme) && len(schemes) < maxSchemes {
			schemes = append(schemes, scheme)
		}
	}
	return schemes
}

// challengesOf returns the challenges of an answer, each "scheme", "scheme token"
// or "scheme name=value, ...".
func challengesOf(h http.Header) []string {
	var challenges []string
	for _, value := range h.Values("Proxy-Authenticate") {
		challenges = append(challenges, splitChallenges(value)...)
	}
	return challenges
}

// splitChallenges cuts a list of challenges (RFC 9110, 11.6.1) apart. The comma
// that separates them also separates their parameters: a challenge begins with a
// token that no equals sign follows. What is neither is left out.
func splitChallenges(value string) []string {
	var challenges []string
	for _, element := range splitList(value) {
		name := element[:len(element)-len(strings.TrimLeft(element, tokenChars))]
		after := strings.TrimLeft(element[len(name):], " \t")
		spaced := len(name)+len(after) < len(element)
		switch last := len(challenges) - 1; {
		case name == "":
		case strings.HasPrefix(after, "="):
			if last >= 0 && strings.Contains(challenges[last], " ") {
				challenges[last] += ", " + element
			}
		case after == "":
			challenges = append(challenges, name)
		case spaced:
			challenges = append(challenges, name+" "+after)
		}
	}
	return challenges
}

// tokenChars are those of RFC 9110, 5.6.2.
const tokenChars = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

// splitList cuts a list at its commas, except in quoted strings, and leaves out
// empty elements.
func splitList(value string) []string {
	var elements []string
	quoted, start := false, 0
	add := func(end int) {
		if element := strings.Trim(value[start:end], " \t"); element != "" {
			elements = append(elements, element)
		}
	}
	for i := 0; i < len(value); i++ {
		switch c := value[i]; {
		case c == '\\' && quoted:
			i++
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			add(i)
			start = i + 1
		}
	}
	add(len(value))
	return elements
}
