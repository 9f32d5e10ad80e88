package seal

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/flynn/noise"
)

// ErrBroken means bytes that whoever holds the keys has not sealed, or not so.
var ErrBroken = errors.New("seal broken")

// PublicKey is an X25519 public key.
type PublicKey = [32]byte

// The first byte says what the rest is. A hello that is not sealed begins with the
// link's version, which stays below them.
const (
	kindHello    = 0x81 // handshake, either way
	kindQuestion = 0x82 // which key the server has, and the answer
	kindVoucher  = 0x83 // a client's first message for requests that open nothing
)

const (
	// MaxAuthorization is the longest Content.Authorization in bytes.
	MaxAuthorization = 16<<10 + 16
	// MaxHello is the most bytes that Seal or Answer add to a hello or a reply.
	MaxHello = 1 + 32 + 48 + 16 + contentHeader + MaxAuthorization

	contentHeader = 3
	flagOwned     = 1 << 0
)

// IsHello, IsQuestion and IsVoucher say what b claims to be.
func IsHello(b []byte) bool    { return len(b) > 0 && b[0] == kindHello }
func IsQuestion(b []byte) bool { return len(b) > 0 && b[0] == kindQuestion }
func IsVoucher(b []byte) bool  { return len(b) > 0 && b[0] == kindVoucher }

// Content is what a client's first message says.
type Content struct {
	// Owned says that the client's key is its credential, and not one made for this
	// handshake.
	Owned bool
	// Authorization takes the place of the header of that name; "": none.
	Authorization string
	Hello         []byte
}

// append appends c as it travels:
//
//	0 flags | 1 length of authorization (2) | authorization | hello
func (c Content) append(b []byte) []byte {
	flags := byte(0)
	if c.Owned {
		flags |= flagOwned
	}
	b = binary.BigEndian.AppendUint16(append(b, flags), uint16(len(c.Authorization)))
	return append(append(b, c.Authorization...), c.Hello...)
}

func parseContent(b []byte) (Content, error) {
	if len(b) < contentHeader {
		return Content{}, fmt.Errorf("%w: %d bytes of content", ErrBroken, len(b))
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	rest := b[contentHeader:]
	if n > len(rest) || n > MaxAuthorization {
		return Content{}, fmt.Errorf("%w: authorization of %d bytes", ErrBroken, n)
	}
	return Content{Owned: b[0]&flagOwned != 0, Authorization: string(rest[:n]), Hello: rest[n:]}, nil
}

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256)

// config is the handshake of a kind. What is in the clear is bound to it: the
// protocol's version and the kind. The rest of the request is not, since boxes in
// between may well change it: host, path, headers.
func config(kind byte, pattern noise.HandshakePattern, random io.Reader) noise.Config {
	return noise.Config{
		CipherSuite: suite, Pattern: pattern, Random: random,
		Prologue: append([]byte("culvert.v1 seal"), kind),
	}
}

func pair(key *ecdh.PrivateKey) noise.DHKey {
	return noise.DHKey{Private: key.Bytes(), Public: key.PublicKey().Bytes()}
}

// initiate makes a client's first message.
func initiate(kind byte, random io.Reader, own *ecdh.PrivateKey, server PublicKey, c Content) (*noise.HandshakeState, []byte, error) {
	if len(c.Authorization) > MaxAuthorization {
		return nil, nil, fmt.Errorf("authorization of %d bytes, at most %d", len(c.Authorization), MaxAuthorization)
	}
	if own == nil {
		var err error
		if own, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return nil, nil, err
		}
	}
	cfg := config(kind, noise.HandshakeIK, random)
	cfg.Initiator, cfg.StaticKeypair, cfg.PeerStatic = true, pair(own), server[:]
	state, err := noise.NewHandshakeState(cfg)
	if err != nil {
		return nil, nil, err
	}
	b, _, _, err := state.WriteMessage([]byte{kind}, c.append(nil))
	if err != nil {
		return nil, nil, fmt.Errorf("seal for the server: %w", err)
	}
	return state, b, nil
}

// Sealing is a client's handshake that waits for the server's answer.
type Sealing struct{ state *noise.HandshakeState }

// Hello begins a handshake with the server that has the public key. own is the
// client's key; nil: one that is made for the purpose. The bytes go to the server.
func Hello(own *ecdh.PrivateKey, server PublicKey, c Content) (*Sealing, []byte, error) {
	return hello(rand.Reader, own, server, c)
}

func hello(random io.Reader, own *ecdh.PrivateKey, server PublicKey, c Content) (*Sealing, []byte, error) {
	state, b, err := initiate(kindHello, random, own, server, c)
	return &Sealing{state}, b, err
}

// Finish reads the server's answer and returns what it says, and the keys of what is
// received and sent from then on. An error is ErrBroken: it was not the server, or
// not its answer to this.
func (s *Sealing) Finish(b []byte) (reply []byte, in, out *Cipher, err error) {
	if !IsHello(b) {
		return nil, nil, nil, fmt.Errorf("%w: the answer is not sealed", ErrBroken)
	}
	reply, up, down, err := s.state.ReadMessage(nil, b[1:])
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%w: the answer is not the server's: %w", ErrBroken, err)
	}
	return reply, newCipher(down.UnsafeKey()), newCipher(up.UnsafeKey()), nil
}

// Opened is what a server finds in a client's first message.
type Opened struct {
	Content
	// Key is the client's. That the client holds it is certain only when the first
	// message after the handshake has come.
	Key   PublicKey
	state *noise.HandshakeState
}

// OpenHello opens a client's first message. An error is ErrBroken: it was not sealed
// for the owner of this key.
func OpenHello(own *ecdh.PrivateKey, b []byte) (*Opened, error) {
	return open(kindHello, rand.Reader, own, b)
}

func open(kind byte, random io.Reader, own *ecdh.PrivateKey, b []byte) (*Opened, error) {
	if len(b) == 0 || b[0] != kind {
		return nil, fmt.Errorf("%w: not of this kind", ErrBroken)
	}
	cfg := config(kind, noise.HandshakeIK, random)
	cfg.StaticKeypair = pair(own)
	state, err := noise.NewHandshakeState(cfg)
	if err != nil {
		return nil, err
	}
	content, _, _, err := state.ReadMessage(nil, b[1:])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	o := &Opened{state: state}
	copy(o.Key[:], state.PeerStatic())
	o.Content, err = parseContent(content)
	return o, err
}

// Answer ends the server's handshake: the bytes go to the client. It is called once.
func (o *Opened) Answer(reply []byte) (b []byte, in, out *Cipher, err error) {
	b, up, down, err := o.state.WriteMessage([]byte{kindHello}, reply)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("seal for the client: %w", err)
	}
	return b, newCipher(up.UnsafeKey()), newCipher(down.UnsafeKey()), nil
}

// Voucher is a credential for requests of which the server does not answer the first
// one with a handshake: c, sealed for the server. It can be played again by whoever
// sees it, as a bearer token can.
func Voucher(own *ecdh.PrivateKey, server PublicKey, c Content) ([]byte, error) {
	_, b, err := initiate(kindVoucher, rand.Reader, own, server, c)
	return b, err
}

// OpenVoucher opens what Voucher has made. An error is ErrBroken.
func OpenVoucher(own *ecdh.PrivateKey, b []byte) (*Opened, error) {
	return open(kindVoucher, rand.Reader, own, b)
}

// Question asks a server for its public key (Noise_XX, of which only two messages are
// used): only the owner of a key can answer with it. Whether it is the right one, the
// answer does not say.
type Question struct{ state *noise.HandshakeState }

// Ask makes a question. The bytes go to the server.
func Ask() (*Question, []byte, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	cfg := config(kindQuestion, noise.HandshakeXX, rand.Reader)
	cfg.Initiator, cfg.StaticKeypair = true, pair(own)
	state, err := noise.NewHandshakeState(cfg)
	if err != nil {
		return nil, nil, err
	}
	b, _, _, err := state.WriteMessage([]byte{kindQuestion}, nil)
	return &Question{state}, b, err
}

// Introduce answers a question with own's public key.
func Introduce(own *ecdh.PrivateKey, b []byte) ([]byte, error) {
	if len(b) != 1+32 || !IsQuestion(b) {
		return nil, fmt.Errorf("%w: no question", ErrBroken)
	}
	cfg := config(kindQuestion, noise.HandshakeXX, rand.Reader)
	cfg.StaticKeypair = pair(own)
	state, err := noise.NewHandshakeState(cfg)
	if err != nil {
		return nil, err
	}
	if _, _, _, err := state.ReadMessage(nil, b[1:]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	answer, _, _, err := state.WriteMessage([]byte{kindQuestion}, nil)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return answer, nil
}

// Key reads the answer. An error is ErrBroken.
func (q *Question) Key(b []byte) (key PublicKey, err error) {
	if !IsQuestion(b) {
		return key, fmt.Errorf("%w: no answer to the question", ErrBroken)
	}
	said, _, _, err := q.state.ReadMessage(nil, b[1:])
	if err != nil || !bytes.Equal(said, nil) {
		return key, fmt.Errorf("%w: %w", ErrBroken, err)
	}
	copy(key[:], q.state.PeerStatic())
	return key, nil
}
