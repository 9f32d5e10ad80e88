package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

// testCA is an authority for tests.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial = big.NewInt(1000)

// issue makes a certificate as template says, signed by ca, or by itself if that is nil.
// It is good for an hour, for clients, unless template says otherwise.
func issue(t testing.TB, ca *testCA, template x509.Certificate) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial.Add(serial, big.NewInt(1))
	template.SerialNumber = new(big.Int).Set(serial)
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	if template.IsCA {
		template.BasicConstraintsValid = true
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	} else if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	}
	parent, signer := &template, key
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func newCA(t testing.TB, name string, parent *testCA) *testCA {
	t.Helper()
	return issue(t, parent, x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true})
}

func named(name string) x509.Certificate {
	return x509.Certificate{Subject: pkix.Name{CommonName: name}}
}

func pemOf(cas ...*testCA) []byte {
	var out []byte
	for _, ca := range cas {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	}
	return out
}

// list is a revocation list in DER, good for an hour unless template says otherwise.
func (ca *testCA) list(t testing.TB, template x509.RevocationList, revoked ...*testCA) []byte {
	t.Helper()
	serial.Add(serial, big.NewInt(1))
	template.Number = new(big.Int).Set(serial)
	if template.ThisUpdate.IsZero() {
		template.ThisUpdate = time.Now().Add(-time.Minute)
	}
	if template.NextUpdate.IsZero() {
		template.NextUpdate = time.Now().Add(time.Hour)
	}
	for _, r := range revoked {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: r.cert.SerialNumber, RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, &template, ca.cert, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func pemLists(lists ...[]byte) []byte {
	var out []byte
	for _, list := range lists {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: list})...)
	}
	return out
}

func mustCAs(t testing.TB, authorities, lists []byte) *ClientCAs {
	t.Helper()
	c, _, err := NewClientCAs(authorities, lists)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func certificateNames(t testing.TB, texts ...string) []CertificateName {
	t.Helper()
	var names []CertificateName
	for _, text := range texts {
		name, err := ParseCertificateName(text)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	return names
}

func shown(certs ...*testCA) Presented {
	var p Presented
	for _, c := range certs {
		p.Certificates = append(p.Certificates, c.cert)
	}
	return p
}

func TestClientCertificates(t *testing.T) {
	ca, other := newCA(t, "ca", nil), newCA(t, "ca", nil) // of the same name
	between := newCA(t, "between", ca)
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	d := mustDirectory(t, DirectoryConfig{
		ClientCAs: mustCAs(t, pemOf(ca), nil),
		Identities: []Identity{
			{Name: "alice", Certificates: certificateNames(t, "subject:CN=alice,O=Example", "dns:alice.example.com")},
			{Name: "bob", Certificates: certificateNames(t, "email:bob@example.com", "uri:spiffe://example.com/bob")},
		},
	})
	subject := pkix.Name{CommonName: "alice", Organization: []string{"Example"}}
	now := time.Now()
	for _, tt := range []struct {
		name string
		from *testCA
		cert x509.Certificate
		who  string
		want error // nil: any
	}{
		{"the subject", ca, x509.Certificate{Subject: subject}, "alice", nil},
		{"a DNS name", ca, x509.Certificate{DNSNames: []string{"x.example.com", "Alice.Example.com"}}, "alice", nil},
		{"an address", ca, x509.Certificate{EmailAddresses: []string{"bob@EXAMPLE.com"}}, "bob", nil},
		{"a URI", ca, x509.Certificate{URIs: uri("spiffe://example.com/bob")}, "bob", nil},
		{"two names of one", ca, x509.Certificate{Subject: subject, DNSNames: []string{"alice.example.com"}}, "alice", nil},
		{"names of two", ca, x509.Certificate{Subject: subject, EmailAddresses: []string{"bob@example.com"}}, "", ErrAmbiguous},
		{"of an intermediate", between, x509.Certificate{Subject: subject}, "alice", nil},
		{"a part of the subject", ca, named("alice"), "", ErrNobodys},
		{"more than the subject", ca, x509.Certificate{Subject: pkix.Name{CommonName: "alice", Organization: []string{"Example"}, Country: []string{"DE"}}}, "", ErrNobodys},
		{"the name of the subject as a DNS name", ca, x509.Certificate{DNSNames: []string{"alice"}}, "", ErrNobodys},
		{"a text that looks like the subject", ca, named("alice,O=Example"), "", ErrNobodys},
		{"a wildcard", ca, x509.Certificate{DNSNames: []string{"*.example.com"}}, "", ErrNobodys},
		{"another case of the address", ca, x509.Certificate{EmailAddresses: []string{"Bob@example.com"}}, "", ErrNobodys},
		{"no name", ca, x509.Certificate{}, "", ErrNobodys},
		{"expired", ca, x509.Certificate{Subject: subject, NotBefore: now.Add(-2 * time.Hour), NotAfter: now.Add(-time.Second)}, "", ErrExpired},
		{"not yet", ca, x509.Certificate{Subject: subject, NotBefore: now.Add(time.Minute)}, "", ErrNotYet},
		{"of another authority of the same name", other, x509.Certificate{Subject: subject}, "", nil},
		{"signed by itself", nil, x509.Certificate{Subject: subject}, "", nil},
		{"for servers", ca, x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, "", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cert := issue(t, tt.from, tt.cert)
			login, err := d.login(t.Context(), shown(cert, between))
			switch {
			case tt.who == "":
				if login != nil || err == nil || tt.want != nil && !errors.Is(err, tt.want) {
					t.Errorf("login %+v, error %v, want %v", login, err, tt.want)
				}
			case err != nil:
				t.Error(err)
			case login.Identity != tt.who || !strings.HasPrefix(login.Credential, "certificate ") || !login.Until.Equal(cert.cert.NotAfter):
				t.Errorf("it is %q by %q until %v", login.Identity, login.Credential, login.Until)
			}
		})
	}
	t.Run("a token first", func(t *testing.T) {
		p := shown(issue(t, ca, x509.Certificate{Subject: subject}))
		p.Bearer = "not a good one"
		if login, err := d.login(t.Context(), p); !errors.Is(err, ErrUnknownToken) {
			t.Errorf("a certificate rescued a bad token: %v, %v", login, err)
		}
	})
	t.Run("anybody last", func(t *testing.T) {
		open := mustDirectory(t, DirectoryConfig{ClientCAs: mustCAs(t, pemOf(ca), nil), Anybody: &Identity{Name: "guest"}})
		if login, err := open.login(t.Context(), shown(issue(t, ca, named("nobody")))); !errors.Is(err, ErrNobodys) {
			t.Errorf("nobody's certificate: %v, %v", login, err)
		}
		if login, err := open.login(t.Context(), Presented{}); err != nil || login.Identity != "guest" {
			t.Errorf("nothing shown: %v, %v", login, err)
		}
	})
	t.Run("until the authority ends", func(t *testing.T) {
		brief := issue(t, ca, x509.Certificate{Subject: pkix.Name{CommonName: "brief"}, IsCA: true, NotAfter: now.Add(time.Minute)})
		login, err := d.login(t.Context(), shown(issue(t, brief, x509.Certificate{Subject: subject}), brief))
		if err != nil || !login.Until.Equal(brief.cert.NotAfter) {
			t.Errorf("%+v, %v", login, err)
		}
	})
}

func TestRevocation(t *testing.T) {
	ca := newCA(t, "ca", nil)
	between := newCA(t, "between", ca)
	good, bad, indirect := issue(t, ca, named("good")), issue(t, ca, named("bad")), issue(t, between, named("indirect"))
	past := x509.RevocationList{ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(-time.Second)}
	identities := []Identity{{Name: "all", Certificates: certificateNames(t, "subject:CN=good", "subject:CN=bad", "subject:CN=indirect")}}
	cas := pemOf(ca, between)
	for _, tt := range []struct {
		name    string
		lists   []byte
		warning string
		want    map[*testCA]error // who is refused, and why
	}{
		{"no lists", nil, "", nil},
		{"nobody revoked", pemLists(ca.list(t, x509.RevocationList{}), between.list(t, x509.RevocationList{})), "", nil},
		{"one revoked", pemLists(ca.list(t, x509.RevocationList{}, bad), between.list(t, x509.RevocationList{})), "", map[*testCA]error{bad: ErrRevoked}},
		{"the intermediate revoked", pemLists(between.list(t, x509.RevocationList{}), ca.list(t, x509.RevocationList{}, between)), "", map[*testCA]error{indirect: ErrRevoked}},
		{"by the intermediate", pemLists(between.list(t, x509.RevocationList{}, indirect), ca.list(t, x509.RevocationList{})), "", map[*testCA]error{indirect: ErrRevoked}},
		{"a number of the other authority", pemLists(between.list(t, x509.RevocationList{}, bad, good), ca.list(t, x509.RevocationList{})), "", nil},
		{"past its time", pemLists(between.list(t, x509.RevocationList{}), ca.list(t, past, bad)), "CN=ca ended at", map[*testCA]error{good: ErrNoList, bad: ErrRevoked, indirect: ErrNoList}},
		{
			"a newer one counts", pemLists(between.list(t, x509.RevocationList{}), ca.list(t, x509.RevocationList{}, bad), ca.list(t, past, good)), "",
			map[*testCA]error{bad: ErrRevoked},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, warnings, err := NewClientCAs(cas, tt.lists)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(warnings, "\n"); !strings.Contains(got, tt.warning) || (got == "") != (tt.warning == "") {
				t.Errorf("warnings %q, want %q", got, tt.warning)
			}
			d := mustDirectory(t, DirectoryConfig{ClientCAs: c, Identities: identities})
			for _, cert := range []*testCA{good, bad, indirect} {
				chain := []*testCA{cert, between}
				_, err := d.login(t.Context(), shown(chain...))
				if want := tt.want[cert]; !errors.Is(err, want) {
					t.Errorf("%s: %v, want %v", cert.cert.Subject, err, want)
				}
			}
		})
	}
	t.Run("of the root only, DER", func(t *testing.T) {
		c, _, err := NewClientCAs(pemOf(ca), ca.list(t, x509.RevocationList{}, bad))
		if err != nil {
			t.Fatal(err)
		}
		d := mustDirectory(t, DirectoryConfig{ClientCAs: c, Identities: identities})
		for cert, want := range map[*testCA]error{good: nil, bad: ErrRevoked, indirect: ErrNoList} {
			if _, err := d.login(t.Context(), shown(cert, between)); !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", cert.cert.Subject, err, want)
			}
		}
	})
}

// TestRevokedAtReload checks that a login ends when a new list, or another authority,
// comes into force.
func TestRevokedAtReload(t *testing.T) {
	ca, other := newCA(t, "ca", nil), newCA(t, "other", nil)
	cert := issue(t, ca, named("alice"))
	alice := Identity{Name: "alice", Certificates: certificateNames(t, "subject:CN=alice")}
	directory := func(cas *ClientCAs, id Identity) *Directory {
		return mustDirectory(t, DirectoryConfig{ClientCAs: cas, Identities: []Identity{id}})
	}
	now := mustCAs(t, pemOf(ca), ca.list(t, x509.RevocationList{}))
	for _, tt := range []struct {
		name  string
		after *Directory
		ends  bool
	}{
		{"nothing changed", directory(mustCAs(t, pemOf(ca), ca.list(t, x509.RevocationList{})), alice), false},
		{"another authority more", directory(mustCAs(t, pemOf(other, ca), nil), alice), false},
		{"revoked", directory(mustCAs(t, pemOf(ca), ca.list(t, x509.RevocationList{}, cert)), alice), true},
		{"another authority", directory(mustCAs(t, pemOf(other), nil), alice), true},
		{"another name", directory(now, Identity{Name: "alice", Certificates: certificateNames(t, "subject:CN=bob")}), true},
		{"another identity", directory(now, Identity{Name: "bob", Certificates: alice.Certificates}), true},
		{"no authority", mustDirectory(t, DirectoryConfig{Identities: []Identity{{Name: "alice"}}}), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			guard := NewGuard(directory(now, alice))
			login, err := guard.Authenticate(t.Context(), shown(cert))
			if err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			defer guard.Watch(login, func(err error) { ended <- err })()
			guard.Use(tt.after)
			select {
			case err := <-ended:
				if !tt.ends || !errors.Is(err, ErrRevoked) {
					t.Errorf("the login ended: %v", err)
				}
			default:
				if tt.ends {
					t.Error("the login goes on")
				}
			}
		})
	}
}

func TestClientCAsErrors(t *testing.T) {
	ca, other := newCA(t, "ca", nil), newCA(t, "other", nil)
	twin := newCA(t, "ca", nil)
	leaf := issue(t, ca, named("alice"))
	critical := func(id asn1.ObjectIdentifier) x509.RevocationList {
		return x509.RevocationList{ExtraExtensions: []pkix.Extension{{Id: id, Critical: true, Value: []byte{0x30, 0}}}}
	}
	entry := x509.RevocationList{RevokedCertificateEntries: []x509.RevocationListEntry{{
		SerialNumber: big.NewInt(1), RevocationTime: time.Now(),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 29}, Critical: true, Value: []byte{0x30, 0}}},
	}}}
	crossed := func(subject, signer *testCA) *testCA {
		der, err := x509.CreateCertificate(rand.Reader, subject.cert, signer.cert, subject.key.Public(), signer.key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return &testCA{cert, subject.key}
	}
	list := ca.list(t, x509.RevocationList{})
	broken := slices.Clone(list)
	broken[len(broken)-1] ^= 1
	for _, tt := range []struct {
		name      string
		ca, lists []byte
		want      string
	}{
		{"nothing", nil, nil, "no certificate of an authority"},
		{"no authority", pemOf(leaf), nil, "CN=alice is not an authority's certificate"},
		{"two that signed one another", pemOf(crossed(ca, other), crossed(other, ca)), nil, "have all signed one another"},
		{"a list as an authority", pemLists(list), nil, `PEM block "X509 CRL", not "CERTIFICATE"`},
		{"an authority as a list", pemOf(ca), pemOf(ca), `PEM block "CERTIFICATE", not "X509 CRL"`},
		{"an empty list", pemOf(ca), []byte{}, "not a revocation list of version 2"},
		{"a list of another", pemOf(ca), other.list(t, x509.RevocationList{}), "CN=other is not signed by a client authority"},
		{"a list of another of the same name", pemOf(ca), twin.list(t, x509.RevocationList{}), "CN=ca is not signed by a client authority"},
		{"a broken list", pemOf(ca), broken, "CN=ca is not signed by a client authority"},
		{"no list of one", pemOf(ca, other), list, "no revocation list of CN=other"},
		{"a difference to another list", pemOf(ca), ca.list(t, critical(asn1.ObjectIdentifier{2, 5, 29, 27})), "covers a part only"},
		{"a list of a part", pemOf(ca), ca.list(t, critical(asn1.ObjectIdentifier{2, 5, 29, 28})), "covers a part only"},
		{"a list with what others issued", pemOf(ca), ca.list(t, entry), "has certificates of others"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, _, err := NewClientCAs(tt.ca, tt.lists); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

func TestCertificateNames(t *testing.T) {
	for _, tt := range []struct{ text, other string }{
		{"subject:CN=alice,O=Example", "subject:cn=alice, o=Example"},
		{"subject:CN=alice,O=Example", "subject:2.5.4.3=alice,2.5.4.10 = Example "},
		{"subject:CN=a+OU=b,O=c", "subject:OU=b+CN=a,O=c"},
		{`subject:CN=a\,b`, `subject:CN=a\2Cb`},
		{`subject:CN=\C3\A9`, "subject:CN=é"},
		{`subject:CN=\ a\ `, `subject:CN=\20a\20`},
		{"subject:CN=#0c026869", "subject:CN=hi"},
		{"dns:Host.Example.com.", "dns:host.example.com"},
		{"email:Al.Ice@EXAMPLE.com", "email:Al.Ice@example.com"},
		{"uri:spiffe://example.com/a", "uri:spiffe://example.com/a"},
	} {
		if names := certificateNames(t, tt.text, tt.other); names[0] != names[1] {
			t.Errorf("%s is %s, and %s is %s", tt.text, names[0], tt.other, names[1])
		}
	}
	distinct := certificateNames(t, "subject:CN=alice,O=Example", "subject:O=Example,CN=alice", "subject:CN=alice+O=Example", "subject:CN=alice",
		"subject:CN=Alice", `subject:CN=alice\,O\=Example`, "dns:alice", "uri:dns:alice", "email:a@b", "email:A@b")
	for i, name := range distinct {
		if slices.Contains(distinct[i+1:], name) {
			t.Errorf("%s stands for two", name)
		}
	}
	for text, want := range map[string]string{
		"": "is not a name", "alice": "is not a name", "subject:": "is not a name", "cn:alice": "of no known kind",
		"subject:alice": "is not TYPE=VALUE", "subject:CN=": "empty", "subject:CN=a,": "is not TYPE=VALUE", "subject:X=a": "is not a type",
		"subject:CN=a;b": "not escaped", `subject:CN=a\`: "not escaped", `subject:CN=\FF`: "not UTF-8", "subject:CN=#zz": "hexadecimal", "subject:CN=#0101": "not the encoding",
		"dns:*.example.com": "no wildcards", "email:alice": "is not email:", "uri:alice": "is not uri:",
	} {
		if name, err := ParseCertificateName(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want %q", text, name, err, want)
		}
	}
	ca := newCA(t, "ca", nil)
	name := certificateNames(t, "dns:a")
	for want, cfg := range map[string]DirectoryConfig{
		"there is no client authority": {Identities: []Identity{{Name: "a", Certificates: name}}},
		"is also one of a":             {ClientCAs: mustCAs(t, pemOf(ca), nil), Identities: []Identity{{Name: "a", Certificates: name}, {Name: "b", Certificates: name}}},
	} {
		if _, err := NewDirectory(cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// FuzzCertificateName checks that a subject is itself when it is written as Go does it.
func FuzzCertificateName(f *testing.F) {
	f.Add("alice", "Example", "unit")
	f.Add(" a, b+c=\\\"#<>; ", "#", "é")
	f.Fuzz(func(t *testing.T, cn, o, ou string) {
		_, _ = ParseCertificateName("subject:" + cn)
		subject := pkix.Name{CommonName: cn, Organization: []string{o}, OrganizationalUnit: []string{ou}}
		der, err := asn1.Marshal(subject.ToRDNSequence())
		if err != nil || cn == "" || o == "" || ou == "" {
			return
		}
		var rdns pkix.RDNSequence
		if _, err := asn1.Unmarshal(der, &rdns); err != nil {
			return
		}
		want, ok := subjectName(rdns)
		if got, err := ParseCertificateName("subject:" + rdns.String()); !ok || err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", rdns.String(), got, err, want)
		}
	})
}
