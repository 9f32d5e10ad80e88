package auth

import (
	"cmp"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// CertificateName is a name that a client certificate can bear: its subject or one of
// its alternative names. Two of them are equal if they are the same name, however it
// was written.
type CertificateName struct {
	name string // kind, colon, and the name in its one spelling
}

func (n CertificateName) String() string { return n.name }

// ParseCertificateName reads a name as it stands in a configuration: "subject:" and a
// distinguished name as RFC 2253 has it (the most specific part first), "dns:", "email:"
// or "uri:" and a name. There are no wildcards.
func ParseCertificateName(text string) (CertificateName, error) {
	kind, name, ok := strings.Cut(text, ":")
	if !ok || name == "" {
		return CertificateName{}, fmt.Errorf("%q is not a name of a certificate; write subject:CN=alice,O=Example, dns:HOST, email:ADDRESS or uri:URI", text)
	}
	switch kind {
	case "subject":
		rdns, err := parseDN(name)
		if err != nil {
			return CertificateName{}, fmt.Errorf("%q: %w; write it as RFC 2253 does, like subject:CN=alice,O=Example", text, err)
		}
		name, _ := subjectName(rdns)
		return name, nil
	case "dns":
		if strings.Contains(name, "*") {
			return CertificateName{}, fmt.Errorf("%q: a certificate's name has no wildcards here; write each name", text)
		}
		return dnsName(name), nil
	case "email":
		if local, domain, ok := strings.Cut(name, "@"); !ok || local == "" || domain == "" {
			return CertificateName{}, fmt.Errorf("%q is not email:LOCAL@DOMAIN", text)
		}
		return emailName(name), nil
	case "uri":
		uri, err := url.Parse(name)
		if err != nil || uri.Scheme == "" {
			return CertificateName{}, fmt.Errorf("%q is not uri:SCHEME://...", text)
		}
		return uriName(uri), nil
	}
	return CertificateName{}, fmt.Errorf("%q is of no known kind; write subject:, dns:, email: or uri:", text)
}

func dnsName(host string) CertificateName {
	return CertificateName{"dns:" + strings.ToLower(strings.TrimSuffix(host, "."))}
}

// emailName does not fold the local part, which the domain's server alone may do.
func emailName(address string) CertificateName {
	at := strings.LastIndex(address, "@") + 1
	return CertificateName{"email:" + address[:at] + strings.ToLower(address[at:])}
}

func uriName(uri *url.URL) CertificateName { return CertificateName{"uri:" + uri.String()} }

// subjectName is a distinguished name in its one spelling: the types as object
// identifiers, the texts quoted, the order of the certificate. It is no good if a value is
// not a text, or if there is none at all.
func subjectName(rdns pkix.RDNSequence) (name CertificateName, ok bool) {
	parts := make([]string, 0, len(rdns))
	for _, rdn := range rdns {
		var set []string
		for _, a := range rdn {
			value, ok := a.Value.(string)
			if !ok {
				return CertificateName{}, false
			}
			set = append(set, a.Type.String()+"="+strconv.Quote(value))
		}
		slices.Sort(set)
		parts = append(parts, strings.Join(set, "+"))
	}
	return CertificateName{"subject:" + strings.Join(parts, ",")}, len(parts) > 0
}

// namesOf returns all the names that a certificate bears.
func namesOf(cert *x509.Certificate) []CertificateName {
	var names []CertificateName
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(cert.RawSubject, &rdns); err == nil && len(rest) == 0 {
		if name, ok := subjectName(rdns); ok {
			names = append(names, name)
		}
	}
	for _, host := range cert.DNSNames {
		names = append(names, dnsName(host))
	}
	for _, address := range cert.EmailAddresses {
		names = append(names, emailName(address))
	}
	for _, uri := range cert.URIs {
		names = append(names, uriName(uri))
	}
	return names
}

// attributes are the types of a distinguished name that have a short name.
var attributes = map[string]string{
	"CN": "2.5.4.3", "SN": "2.5.4.4", "SERIALNUMBER": "2.5.4.5", "C": "2.5.4.6", "L": "2.5.4.7", "ST": "2.5.4.8",
	"STREET": "2.5.4.9", "O": "2.5.4.10", "OU": "2.5.4.11", "TITLE": "2.5.4.12", "POSTALCODE": "2.5.4.17", "GN": "2.5.4.42",
	"UID": "0.9.2342.19200300.100.1.1", "DC": "0.9.2342.19200300.100.1.25", "EMAILADDRESS": "1.2.840.113549.1.9.1",
}

// parseDN reads a distinguished name (RFC 4514, which follows RFC 2253) and returns it
// in the order of a certificate, the most specific part last.
func parseDN(text string) (pkix.RDNSequence, error) {
	rdns := pkix.RDNSequence{nil}
	for {
		name, rest, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not TYPE=VALUE", text)
		}
		oid, err := attributeType(strings.TrimSpace(name))
		if err != nil {
			return nil, err
		}
		value, rest, err := attributeValue(strings.TrimLeft(rest, " "))
		if err != nil {
			return nil, fmt.Errorf("the value of %s: %w", strings.TrimSpace(name), err)
		}
		rdns[0] = append(rdns[0], pkix.AttributeTypeAndValue{Type: oid, Value: value})
		switch {
		case rest == "":
			return rdns, nil
		case rest[0] == ',':
			rdns = slices.Insert(rdns, 0, pkix.RelativeDistinguishedNameSET(nil))
		}
		text = rest[1:]
	}
}

func attributeType(name string) (asn1.ObjectIdentifier, error) {
	var oid asn1.ObjectIdentifier
	for part := range strings.SplitSeq(cmp.Or(attributes[strings.ToUpper(name)], name), ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return nil, fmt.Errorf("%q is not a type of attribute; write CN, O, OU, ... or an object identifier", name)
		}
		oid = append(oid, int(n))
	}
	return oid, nil
}

// attributeValue reads a value up to an unescaped comma or plus sign, with which rest
// begins.
func attributeValue(text string) (value, rest string, err error) {
	if strings.HasPrefix(text, "#") {
		end := strings.IndexAny(text, ",+")
		if end < 0 {
			end = len(text)
		}
		value, err = derText(strings.TrimSpace(text[1:end]))
		return value, text[end:], err
	}
	var b strings.Builder
	solid := 0 // length without the spaces at the end that are not escaped
	for text != "" && text[0] != ',' && text[0] != '+' {
		switch c := text[0]; {
		case c == '\\' && len(text) >= 3 && isHex(text[1]) && isHex(text[2]):
			raw, _ := hex.DecodeString(text[1:3])
			b.Write(raw)
			solid = b.Len()
			text = text[3:]
		case c == '\\' && len(text) >= 2 && strings.IndexByte(` "#+,;<=>\`, text[1]) >= 0:
			b.WriteByte(text[1])
			solid = b.Len()
			text = text[2:]
		case strings.IndexByte(`\";<>`, c) >= 0:
			return "", "", fmt.Errorf("%q is not escaped with a \\", c)
		default:
			b.WriteByte(c)
			if c != ' ' {
				solid = b.Len()
			}
			text = text[1:]
		}
	}
	value = b.String()[:solid]
	switch {
	case value == "":
		return "", "", errors.New("empty")
	case !utf8.ValidString(value):
		return "", "", errors.New("not UTF-8")
	}
	return value, text, nil
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// derText reads a value that is written as the hexadecimal digits of its encoding.
func derText(digits string) (string, error) {
	der, err := hex.DecodeString(digits)
	if err != nil {
		return "", errors.New("# is not followed by hexadecimal digits")
	}
	var value any
	if rest, err := asn1.Unmarshal(der, &value); err == nil && len(rest) == 0 {
		if text, ok := value.(string); ok && text != "" {
			return text, nil
		}
	}
	return "", errors.New("not the encoding of a text")
}
