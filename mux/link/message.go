package link

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

// A message is what one carrier message holds. Integers are big-endian.
//
//	 0        1                9                17
//	+--------+----------------+----------------+---------- - - -+----------+
//	| type   | offset         | ack            | payload        | CRC-32C  |
//	+--------+----------------+----------------+---------- - - -+----------+
//
// The CRC, over all that precedes it, is there unless both ends of the carrier
// are under TLS (see hello.go).
const (
	headerSize  = 17
	trailerSize = 4

	typeData byte = 1 // payload: bytes of the stream from offset on, possibly none
	typeBye  byte = 2 // payload: why the sender closes the link, UTF-8
	typeLast byte = 3 // no payload: the sender goes on at offset, on the next carrier

	maxReason = 200
)

// MaxMessage is the default of Config.MaxMessage, in bytes, header and checksum
// included.
const MaxMessage = 128 << 10

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// message is a decoded message; payload points into the buffer it came from.
type message struct {
	kind    byte
	offset  uint64
	ack     uint64
	payload []byte
}

// putHeader writes a header to b[:headerSize].
func putHeader(b []byte, kind byte, offset, ack uint64) {
	b[0] = kind
	binary.BigEndian.PutUint64(b[1:], offset)
	binary.BigEndian.PutUint64(b[9:], ack)
}

// seal appends the checksum to a message if the carrier wants one. b must have
// room for it.
func seal(b []byte, checksum bool) []byte {
	if !checksum {
		return b
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parse decodes a message. Its errors wrap ErrProtocol or ErrChecksum.
func parse(b []byte, checksum bool) (message, error) {
	if checksum {
		n := len(b) - trailerSize
		if n < headerSize {
			return message{}, fmt.Errorf("%w: message of %d bytes", ErrProtocol, len(b))
		}
		if crc32.Checksum(b[:n], castagnoli) != binary.BigEndian.Uint32(b[n:]) {
			return message{}, ErrChecksum
		}
		b = b[:n]
	}
	if len(b) < headerSize {
		return message{}, fmt.Errorf("%w: message of %d bytes", ErrProtocol, len(b))
	}
	m := message{
		kind:    b[0],
		offset:  binary.BigEndian.Uint64(b[1:]),
		ack:     binary.BigEndian.Uint64(b[9:]),
		payload: b[headerSize:],
	}
	switch {
	case m.kind != typeData && m.kind != typeBye && m.kind != typeLast:
		return message{}, fmt.Errorf("%w: message type %d", ErrProtocol, m.kind)
	case m.offset+uint64(len(m.payload)) < m.offset:
		return message{}, fmt.Errorf("%w: offset overflow", ErrProtocol)
	case m.kind == typeBye && len(m.payload) > maxReason:
		return message{}, fmt.Errorf("%w: reason of %d bytes", ErrProtocol, len(m.payload))
	case m.kind == typeLast && len(m.payload) > 0:
		return message{}, fmt.Errorf("%w: last message with %d bytes", ErrProtocol, len(m.payload))
	}
	return m, nil
}
