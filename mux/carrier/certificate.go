package carrier

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// CertificateError is a server's certificate that does not verify. It says whom the
// certificate is for and who signed it, since that is how a proxy shows itself that
// intercepts TLS. What comes from the certificate is quoted.
type CertificateError struct {
	Name string // that the certificate should have had
	// Given says that the Dialer was given authorities to trust, in TLS.RootCAs.
	Given bool
	Cert  *x509.Certificate // at fault: the server's, or an expired one above it
	Err   error             // of package x509
}

func (e *CertificateError) Error() string {
	return fmt.Sprintf("certificate %s: %s", e.fault(), describe(e.Cert))
}

func (e *CertificateError) fault() string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](e.Err); ok {
		if e.Given {
			return "signed by none of the given authorities"
		}
		return "signed by an unknown authority"
	}
	if _, ok := errors.AsType[x509.HostnameError](e.Err); ok {
		return fmt.Sprintf("for another name than %q", e.Name)
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](e.Err); ok && invalid.Reason == x509.Expired {
		if time.Now().Before(e.Cert.NotBefore) {
			return "not yet valid"
		}
		return "expired"
	}
	return fmt.Sprintf("not acceptable (%q)", e.Err)
}

func (e *CertificateError) Unwrap() error { return e.Err }

// newCertificateError describes err, which verifying a certificate against cfg gave.
func newCertificateError(err *tls.CertificateVerificationError, cfg *tls.Config) error {
	if len(err.UnverifiedCertificates) == 0 {
		return err
	}
	e := &CertificateError{Name: cfg.ServerName, Given: cfg.RootCAs != nil, Cert: err.UnverifiedCertificates[0], Err: err}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Cert != nil {
		e.Cert = invalid.Cert
	}
	return e
}

// describe says in a line whose certificate this is. A certificate can be long, and
// say anything.
func describe(cert *x509.Certificate) string {
	const (
		maxText  = 200 // bytes
		maxNames = 5
	)
	quote := func(s string) string {
		if len(s) > maxText {
			s = s[:maxText] + "..."
		}
		return fmt.Sprintf("%q", s)
	}
	var names []string
	for _, name := range cert.DNSNames {
		names = append(names, quote(name))
	}
	for _, ip := range cert.IPAddresses {
		names = append(names, quote(ip.String()))
	}
	if n := len(names); n > maxNames {
		names = append(names[:maxNames], fmt.Sprintf("and %d more", n-maxNames))
	}
	if len(names) == 0 {
		names = []string{"no name"}
	}
	const minute = "2006-01-02 15:04 MST"
	return fmt.Sprintf("issuer %s, subject %s, for %s, valid from %s to %s", quote(cert.Issuer.String()),
		quote(cert.Subject.String()), strings.Join(names, ", "),
		cert.NotBefore.UTC().Format(minute), cert.NotAfter.UTC().Format(minute))
}

// tlsFailed makes of an error of a handshake with cfg one that says what answered.
// scheme is that of the URL, plain the same without TLS, and kind what somebody is not
// who speaks neither TLS nor HTTP.
func tlsFailed(err error, cfg *tls.Config, scheme, plain string, kind error) error {
	if record, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return notTLS(record.RecordHeader[:], scheme, plain, kind)
	}
	if failed, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return newCertificateError(failed, cfg)
	}
	if http2Only(err) {
		return fmt.Errorf("it %w (%w)", ErrHTTP2Only, err)
	}
	return err
}

// Pin is the SHA-256 sum of a public key, in the form that certificates have it in
// (SubjectPublicKeyInfo, DER), as in RFC 7469.
type Pin [sha256.Size]byte

const pinPrefix = "sha256/"

// PinOf returns the pin of a certificate's public key.
func PinOf(cert *x509.Certificate) Pin { return sha256.Sum256(cert.RawSubjectPublicKeyInfo) }

// ParsePin reads "sha256/" and 32 bytes in base64, as String writes them. Its error
// is ErrInvalidDialer.
func ParsePin(text string) (Pin, error) {
	encoded, ok := strings.CutPrefix(text, pinPrefix)
	sum, err := base64.StdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(sum) != sha256.Size {
		return Pin{}, fmt.Errorf("%w: pin %q is not %s and %d bytes in base64", ErrInvalidDialer, text, pinPrefix, sha256.Size)
	}
	return Pin(sum), nil
}

// String is the pin as ParsePin reads it.
func (p Pin) String() string { return pinPrefix + base64.StdEncoding.EncodeToString(p[:]) }

// PinError says that the server has none of the keys that it may have.
type PinError struct {
	Found Pin               // of the server's certificate
	Cert  *x509.Certificate // that one
}

func (e *PinError) Error() string {
	return fmt.Sprintf("public key %s is not a pinned one: %s", e.Found, describe(e.Cert))
}

// checkPins looks for a pinned key in the server's certificate and in the chains that
// were verified. What else the server sends proves nothing: anybody can send the
// certificate of an authority.
func checkPins(pins []Pin, state tls.ConnectionState) error {
	leaf := state.PeerCertificates[0]
	pinned := func(cert *x509.Certificate) bool { return slices.Contains(pins, PinOf(cert)) }
	if pinned(leaf) {
		return nil
	}
	for _, chain := range state.VerifiedChains {
		if slices.ContainsFunc(chain, pinned) {
			return nil
		}
	}
	return &PinError{Found: PinOf(leaf), Cert: leaf}
}
