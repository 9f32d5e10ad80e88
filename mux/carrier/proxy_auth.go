package carrier

import (
	"encoding/base64"
	"net/http"
	"slices"
	"strings"

	"github.com/Azure/go-ntlmssp"
	"github.com/icholy/digest"
)

// proxyAuth answers what an HTTP proxy asks (RFC 9110, 11.7), in the first of
// these ways that the proxy offers:
//
//   - Digest (RFC 7616), since it belongs to no connection, and shows the
//     password to nobody;
//   - NTLM, also under the name Negotiate: it needs one connection for all of it,
//     and what can be guessed from its messages is more;
//   - Basic, which shows the password to whoever reads along.
//
// This is curl's order. A way that was refused is not followed by another: the
// same wrong password, tried in each, locks accounts.
type proxyAuth struct {
	user, password string
	target         string // of the CONNECT request

	scheme string   // that was chosen, "" before the first answer
	again  bool     // Digest: a stale nonce was replaced once
	step   int      // NTLM: messages sent
	sent   []string // what an error may not show
}

// bound reports whether the next message belongs to the connection of the last.
func (a *proxyAuth) bound() bool { return a.step == 2 }

// answer returns the Proxy-Authorization for what a 407 offers, "" if there is no
// way, or the one that was chosen has come to its end.
func (a *proxyAuth) answer(offered []string) string {
	var answer string
	switch a.scheme {
	case "":
		for _, scheme := range []string{"Digest", "NTLM", "Negotiate", basicScheme} {
			if answer = a.begin(scheme, offered); answer != "" {
				a.scheme = scheme
				break
			}
		}
	case "Digest":
		if !a.again {
			a.again = true
			answer = a.digest(offered, true)
		}
	case "NTLM", "Negotiate":
		if a.step == 1 {
			answer = a.authenticate(offered)
		}
	}
	if _, credential, ok := strings.Cut(answer, " "); ok {
		a.sent = append(a.sent, answer, credential)
	}
	return answer
}

func (a *proxyAuth) begin(scheme string, offered []string) string {
	if !slices.Contains(schemesOf(offered), scheme) {
		return ""
	}
	switch scheme {
	case "Digest":
		return a.digest(offered, false)
	case "NTLM", "Negotiate":
		message, err := ntlmssp.NewNegotiateMessage("", "")
		if err != nil {
			return ""
		}
		a.step = 1
		return scheme + " " + base64.StdEncoding.EncodeToString(message)
	default:
		return basicScheme + " " + basic(a.user, a.password)
	}
}

const basicScheme = "Basic"

// basic is a credential of RFC 7617.
func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// digest answers the first challenge that it can, as RFC 7616 (3.7) wants it.
func (a *proxyAuth) digest(offered []string, onlyStale bool) string {
	for _, challenge := range offered {
		if !digest.IsDigest(challenge) {
			continue
		}
		c, err := digest.ParseChallenge(challenge)
		if err != nil || !digest.CanDigest(c) || onlyStale && !c.Stale {
			continue
		}
		answer, err := digest.Digest(c, digest.Options{
			Method: http.MethodConnect, URI: a.target, Username: a.user, Password: a.password,
		})
		if err == nil {
			a.sent = append(a.sent, answer.Response)
			return answer.String()
		}
	}
	return ""
}

// authenticate answers an NTLM challenge.
func (a *proxyAuth) authenticate(offered []string) string {
	for _, challenge := range offered {
		scheme, token, _ := strings.Cut(challenge, " ")
		if !strings.EqualFold(scheme, a.scheme) {
			continue
		}
		message, err := base64.StdEncoding.DecodeString(strings.TrimSpace(token))
		if err != nil {
			continue
		}
		answer, err := ntlmssp.NewAuthenticateMessage(message, a.user, a.password, nil)
		if err == nil {
			a.step = 2
			return a.scheme + " " + base64.StdEncoding.EncodeToString(answer)
		}
	}
	return ""
}

// maxSchemes bounds the schemes that an error names.
const maxSchemes = 8

// schemesOf returns the schemes of challenges, each once, with the spelling of
// the RFC where it is one of ours.
func schemesOf(challenges []string) []string {
	var schemes []string
	for _, challenge := range challenges {
		scheme, _, _ := strings.Cut(challenge, " ")
		for _, known := range []string{"Digest", "NTLM", "Negotiate", basicScheme} {
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
