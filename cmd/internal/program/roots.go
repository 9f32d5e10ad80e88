package program

import (
	"crypto/x509"
	"fmt"

	"culvert/auth/textfile"
)

// maxCertificates bounds a file of certificates or of a private key in bytes: a system's
// list of authorities has a quarter of a megabyte.
const maxCertificates = 4 << 20

// ReadCertificates reads a file that may have PEM certificates in it.
func ReadCertificates(file string) ([]byte, error) { return textfile.Read(file, maxCertificates) }

// Roots are the system's authorities and those in the PEM file.
func Roots(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil { // a system without any
		pool = x509.NewCertPool()
	}
	return Certificates(pool, file)
}

// Certificates adds those in the PEM file to pool.
func Certificates(pool *x509.CertPool, file string) (*x509.CertPool, error) {
	pem, err := ReadCertificates(file)
	if err != nil {
		return nil, err
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", file)
	}
	return pool, nil
}
