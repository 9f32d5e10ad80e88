package program

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"culvert/config"
)

// KeyPair reads a certificate, followed by its chain, and its private key from the PEM
// files of --tls-cert and --tls-key. An error is of type [config.Problems].
func KeyPair(certFile, keyFile string) (*tls.Certificate, error) {
	var problems config.Problems
	certs, err := ReadCertificates(certFile)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-cert", What: err.Error(), Hint: "give a PEM file with the certificate and its chain"})
	}
	key, err := ReadCertificates(keyFile)
	if err != nil {
		problems = append(problems, config.Problem{Key: "--tls-key", What: err.Error(), Hint: "give a PEM file with the private key"})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	pair, err := tls.X509KeyPair(certs, key)
	switch {
	case err == nil:
		return &pair, nil
	case encrypted(key):
		return nil, config.Problems{{Key: "--tls-key", What: keyFile + ": the private key is encrypted",
			Hint: "give it without a passphrase, as openssl pkey -in FILE -out NEW-FILE writes it"}}
	}
	if n := positionOf(certs, key); n > 0 {
		return nil, config.Problems{{Key: "--tls-cert", What: fmt.Sprintf("%s: the certificates are in the wrong order: the certificate of the private key is number %d", certFile, n),
			Hint: "put it first, then the certificate that signed it, and so on"}}
	}
	return nil, config.Problems{{Key: "--tls-cert", What: fmt.Sprintf("%s with the key %s: %v", certFile, keyFile, err),
		Hint: "give --tls-cert and --tls-key PEM files that belong together"}}
}

// encrypted reports whether the first private key in the PEM data has a passphrase, in
// the form of PKCS #8 or in the older one of RFC 1421.
func encrypted(data []byte) bool {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return block.Type == "ENCRYPTED PRIVATE KEY" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED")
		}
	}
	return false
}

// positionOf returns the position, from 1, of the certificate that belongs to the
// private key, 0 if none does.
func positionOf(certs, key []byte) int {
	position := 0
	for block := range certificates(certs) {
		position++
		if _, err := tls.X509KeyPair(pem.EncodeToMemory(block), key); err == nil {
			return position
		}
	}
	return 0
}

// certificates yields the PEM blocks of certificates.
func certificates(data []byte) func(yield func(*pem.Block) bool) {
	return func(yield func(*pem.Block) bool) {
		for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
			if block.Type == "CERTIFICATE" && !yield(block) {
				return
			}
		}
	}
}

// expiresSoon is how long before its end a certificate deserves a warning.
const expiresSoon = 14 * 24 * time.Hour

// Expiring returns a warning for each certificate in the PEM files that has expired or
// soon will. Paths that are empty or given twice, and files that cannot be read, are left
// out.
func Expiring(files ...string) (warnings []string) {
	for i, file := range files {
		if file == "" || slices.Contains(files[:i], file) {
			continue
		}
		data, err := ReadCertificates(file)
		if err != nil {
			continue
		}
		for block := range certificates(data) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				continue
			}
			if w := expiring(cert, time.Now()); w != "" {
				warnings = append(warnings, file+": "+w)
			}
		}
	}
	return warnings
}

// expiring does not say how much time is left: a reload does not repeat a warning whose
// text is the same.
func expiring(cert *x509.Certificate, now time.Time) string {
	name, end := cert.Subject.String(), cert.NotAfter.UTC().Format(time.RFC3339)
	if name == "" && len(cert.DNSNames) > 0 {
		name = cert.DNSNames[0]
	}
	switch left := cert.NotAfter.Sub(now); {
	case left <= 0:
		return fmt.Sprintf("the certificate %s has expired (%s); renew it", name, end)
	case left <= expiresSoon:
		return fmt.Sprintf("the certificate %s expires soon (%s); renew it", name, end)
	}
	return ""
}
