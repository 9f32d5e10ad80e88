package auth

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ClientCAs are the authorities whose certificates tell who a client is, and what they
// have revoked. It is immutable.
type ClientCAs struct {
	pool        *x509.CertPool // all of them
	roots       *x509.CertPool // those that no other of them has signed, and so cannot revoke
	authorities []*x509.Certificate
	lists       map[string]*revocations // by authority; nil: nothing is ever revoked
}

// revocations is the revocation list of one authority.
type revocations struct {
	revoked map[string]struct{} // serial numbers
	updated time.Time
	next    time.Time // until when the list counts; zero: for ever
}

// NewClientCAs makes client authorities of the contents of a PEM file of certificates
// and, unless it is nil, of a file of revocation lists (PEM, or one in DER). With
// lists, each authority needs one, signed by itself, and what an authority without a
// list in force has issued is refused: a list is of use only while it is kept up to date. A list
// past its time is a warning here, since the next one may be on its way.
func NewClientCAs(authorities, lists []byte) (c *ClientCAs, warnings []string, err error) {
	c = &ClientCAs{pool: x509.NewCertPool(), roots: x509.NewCertPool()}
	blocks, err := pemBlocks(authorities, "CERTIFICATE")
	if err != nil {
		return nil, nil, err
	}
	for _, block := range blocks {
		cert, err := x509.ParseCertificate(block)
		if err != nil {
			return nil, nil, fmt.Errorf("client authority: %w", err)
		}
		if !cert.IsCA {
			return nil, nil, fmt.Errorf("%s is not an authority's certificate", cert.Subject)
		}
		c.pool.AddCert(cert)
		c.authorities = append(c.authorities, cert)
	}
	if len(c.authorities) == 0 {
		return nil, nil, errors.New("no certificate of an authority in it")
	}
	signed := 0
	for _, cert := range c.authorities {
		if slices.ContainsFunc(c.authorities, func(ca *x509.Certificate) bool {
			return authority(ca) != authority(cert) && cert.CheckSignatureFrom(ca) == nil
		}) {
			signed++
			continue
		}
		c.roots.AddCert(cert)
	}
	if signed == len(c.authorities) {
		return nil, nil, errors.New("the authorities have all signed one another; give one that is signed by none of them")
	}
	if lists == nil {
		return c, nil, nil
	}
	warnings, err = c.readLists(lists)
	if err != nil {
		return nil, nil, err
	}
	return c, warnings, nil
}

// pemBlocks returns the contents of all blocks, which are of one type.
func pemBlocks(data []byte, kind string) (blocks [][]byte, err error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return blocks, nil
		}
		if block.Type != kind {
			return nil, fmt.Errorf("PEM block %q, not %q", block.Type, kind)
		}
		blocks = append(blocks, block.Bytes)
	}
}

func (c *ClientCAs) readLists(data []byte) (warnings []string, err error) {
	blocks := [][]byte{data}
	if bytes.Contains(data, []byte("-----BEGIN ")) {
		if blocks, err = pemBlocks(data, "X509 CRL"); err != nil {
			return nil, err
		}
	}
	c.lists = make(map[string]*revocations)
	var errs []error
	for _, block := range blocks {
		list, err := x509.ParseRevocationList(block)
		if err != nil {
			errs = append(errs, fmt.Errorf("not a revocation list of version 2 (%w)", err))
			continue
		}
		errs = append(errs, c.addList(list))
	}
	for _, ca := range c.authorities {
		switch list := c.lists[authority(ca)]; {
		case list == nil:
			errs = append(errs, fmt.Errorf("no revocation list of %s", ca.Subject))
		case !list.inForce():
			warnings = append(warnings, fmt.Sprintf("the revocation list of %s ended at %s; its certificates are refused until there is a newer one",
				ca.Subject, list.next.Format(time.RFC3339)))
		}
	}
	return warnings, errors.Join(errs...)
}

// addList takes a list if it is one that counts for all that its authority issues: no
// extension changes what it means (RFC 5280, 5.2). Of two, the later one counts.
func (c *ClientCAs) addList(list *x509.RevocationList) error {
	for _, e := range list.Extensions {
		if e.Critical {
			return fmt.Errorf("the revocation list of %s covers a part only (critical extension %s); give a complete one", list.Issuer, e.Id)
		}
	}
	r := &revocations{revoked: make(map[string]struct{}), updated: list.ThisUpdate, next: list.NextUpdate}
	for _, entry := range list.RevokedCertificateEntries {
		for _, e := range entry.Extensions {
			if e.Critical {
				return fmt.Errorf("the revocation list of %s has certificates of others (critical extension %s); give one of its own", list.Issuer, e.Id)
			}
		}
		r.revoked[entry.SerialNumber.String()] = struct{}{}
	}
	signed := false
	for _, ca := range c.authorities {
		if !bytes.Equal(ca.RawSubject, list.RawIssuer) || list.CheckSignatureFrom(ca) != nil {
			continue
		}
		signed = true
		if old := c.lists[authority(ca)]; old == nil || old.updated.Before(r.updated) {
			c.lists[authority(ca)] = r
		}
	}
	if !signed {
		return fmt.Errorf("the revocation list of %s is not signed by a client authority of that name", list.Issuer)
	}
	return nil
}

// authority is the name and key that make an authority one and the same, whatever
// certificates it has.
func authority(cert *x509.Certificate) string {
	return string(cert.RawSubject) + string(cert.RawSubjectPublicKeyInfo)
}

func (r *revocations) inForce() bool { return r.next.IsZero() || time.Now().Before(r.next) }

// Pool is the authorities, for the TLS stack. It is not to be changed.
func (c *ClientCAs) Pool() *x509.CertPool { return c.pool }

// Verify returns why a client certificate, with those between it and an authority behind
// it, is not good now: its chain, its dates or a revocation list.
func (c *ClientCAs) Verify(certs []*x509.Certificate) error {
	if len(certs) == 0 {
		return ErrNoCredential
	}
	if _, err := c.verify(certs); err != nil {
		return fmt.Errorf("certificate %s: %w", certificateLabel(certs[0]), err)
	}
	return nil
}

// verify reports whether a client certificate, with those between it and an
// authority behind it, is good now, and until when it can be. The TLS stack has
// verified it too, but perhaps long ago, and against older authorities: a session that
// is resumed shows no certificate.
func (c *ClientCAs) verify(certs []*x509.Certificate) (until time.Time, err error) {
	leaf, now := certs[0], time.Now()
	switch {
	case now.After(leaf.NotAfter):
		return time.Time{}, ErrExpired
	case now.Before(leaf.NotBefore):
		return time.Time{}, ErrNotYet
	}
	between := c.pool.Clone()
	for _, cert := range certs[1:] {
		between.AddCert(cert)
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: c.roots, Intermediates: between, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return time.Time{}, err
	}
	for _, chain := range chains {
		if err = c.checkRevoked(chain); err != nil {
			continue
		}
		until = leaf.NotAfter
		for _, cert := range chain {
			if cert.NotAfter.Before(until) {
				until = cert.NotAfter
			}
		}
		return until, nil
	}
	return time.Time{}, err
}

// checkRevoked asks the list of the issuer of each certificate of a chain.
func (c *ClientCAs) checkRevoked(chain []*x509.Certificate) error {
	if c.lists == nil {
		return nil
	}
	for i, cert := range chain[:len(chain)-1] {
		list := c.lists[authority(chain[i+1])]
		if list == nil {
			return fmt.Errorf("%w of %s", ErrNoList, cert.Issuer)
		}
		if _, revoked := list.revoked[cert.SerialNumber.String()]; revoked {
			return ErrRevoked
		}
		if !list.inForce() {
			return fmt.Errorf("%w of %s: it ended at %s", ErrNoList, cert.Issuer, list.next.Format(time.RFC3339))
		}
	}
	return nil
}

// loginCertificate finds whose client certificate is presented.
func (d *Directory) loginCertificate(certs []*x509.Certificate) (*Login, error) {
	name := certificateLabel(certs[0])
	owner, until, err := d.certificate(certs)
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	return &Login{
		Identity: owner.Name, Credential: "certificate " + name, Until: until,
		valid: func(d *Directory) bool {
			now, _, err := d.certificate(certs)
			return err == nil && now.Name == owner.Name
		},
	}, nil
}

// certificate finds the one identity that a client certificate belongs to.
func (d *Directory) certificate(certs []*x509.Certificate) (owner *Identity, until time.Time, err error) {
	if d.clientCAs == nil {
		return nil, time.Time{}, errors.New("there is no client authority")
	}
	if until, err = d.clientCAs.verify(certs); err != nil {
		return nil, time.Time{}, err
	}
	owners := make(map[*Identity]bool)
	for _, name := range namesOf(certs[0]) {
		if id := d.certificates[name]; id != nil {
			owners[id] = true
		}
	}
	list := make([]*Identity, 0, len(owners))
	for id := range owners {
		list = append(list, id)
	}
	owner, err = only(list)
	return owner, until, err
}

// addCertificates takes the names of an identity's certificates into d.
func (d *Directory) addCertificates(id *Identity) error {
	var errs []error
	if len(id.Certificates) > 0 && d.clientCAs == nil {
		errs = append(errs, fmt.Errorf("identity %s has certificates, and there is no client authority", id.Name))
	}
	for _, name := range id.Certificates {
		if other := d.certificates[name]; other != nil {
			errs = append(errs, fmt.Errorf("the certificate %s of identity %s is also one of %s", name, id.Name, other.Name))
		}
		d.certificates[name] = id
	}
	return errors.Join(errs...)
}

// maxCertificateLabel bounds the name of a certificate in logs, in bytes.
const maxCertificateLabel = 128

// certificateLabel is a certificate's name for logs.
func certificateLabel(cert *x509.Certificate) string {
	label := cert.Subject.String()
	if names := namesOf(cert); label == "" && len(names) > 0 {
		label = names[0].String()
	}
	if len(label) > maxCertificateLabel {
		label = label[:maxCertificateLabel] + "..."
	}
	return cmp.Or(printable(label), "without a name")
}
