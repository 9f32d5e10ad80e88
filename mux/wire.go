package mux

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Kind says what a stream is opened for.
type Kind uint8

const (
	// KindDial asks the acceptor, a server, to dial Target, "host:port".
	KindDial Kind = 1
	// KindForward announces a connection that a remote forward accepted;
	// Target is the forward's identifier, and the client dials the target
	// that it configured for it.
	KindForward Kind = 2
	// KindTest asks the acceptor, a server, to be the other end itself: Target
	// is "echo", "discard" or "chargen", as in RFC 862, 863 and 864.
	KindTest Kind = 3
)

// Header is the first thing on a stream, written by its opener:
//
//	kind (1) | target length (2) | target
type Header struct {
	Kind   Kind
	Target string // at most 512 bytes
}

const (
	maxTarget = 512
	minHeader = 3
)

func (h Header) append(b []byte) []byte {
	b = append(b, byte(h.Kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.Target)))
	return append(b, h.Target...)
}

// headerSize is the size of the header that begins with b, as far as b says.
func headerSize(b []byte) int {
	if len(b) < minHeader {
		return minHeader
	}
	return minHeader + int(binary.BigEndian.Uint16(b[1:]))
}

// readHeader returns the header with which b begins, and what follows it: nil if there
// is only a part of the header.
func readHeader(b []byte) (h Header, rest []byte, err error) {
	n := headerSize(b)
	if n > minHeader+maxTarget {
		return h, nil, fmt.Errorf("%w: target of %d bytes", errProtocol, n-minHeader)
	}
	if len(b) > 0 && (Kind(b[0]) < KindDial || Kind(b[0]) > KindTest) {
		return h, nil, fmt.Errorf("%w: stream of kind %d", errProtocol, b[0])
	}
	if len(b) < n {
		return h, nil, nil
	}
	return Header{Kind: Kind(b[0]), Target: string(b[minHeader:n])}, b[n:], nil
}

// The reply is the first thing that the acceptor writes:
//
//	code (1), and unless it is OK: reason length (1) | reason
func appendReply(b []byte, e *Error) []byte {
	if e == nil {
		return append(b, byte(OK))
	}
	reason := clip(e.Reason)
	b = append(b, byte(e.Code), byte(len(reason)))
	return append(b, reason...)
}

// readReply returns the refusal that the acceptor sent, nil if it accepted.
func readReply(r io.Reader) (refusal *Error, err error) {
	var b [2 + maxReason]byte
	if _, err := io.ReadFull(r, b[:1]); err != nil {
		return nil, err
	}
	if Code(b[0]) == OK {
		return nil, nil
	}
	if _, err := io.ReadFull(r, b[1:2]); err != nil {
		return nil, err
	}
	n := int(b[1])
	if _, err := io.ReadFull(r, b[2:2+n]); err != nil {
		return nil, err
	}
	return &Error{Code: Code(b[0]), Reason: string(b[2 : 2+n])}, nil
}

// A record on the control stream:
//
//	type (1) | body length (2) | body
//
// A record of an unknown type is skipped.
const (
	recordWindow       byte = 1 // stream (4) | bytes granted since the stream began (8)
	recordReset        byte = 2 // stream (4) | code (1) | reason
	recordGoAway       byte = 3 // reason
	recordListen       byte = 4 // forward (4) | bind address, "host:port"
	recordListening    byte = 5 // forward (4) | address, "host:port"
	recordListenFailed byte = 6 // forward (4) | code (1) | reason
	recordUnlisten     byte = 7 // forward (4)
	recordMaxStreams   byte = 8 // streams that the receiver may have open (4)
	recordListenEnded  byte = 9 // forward (4) | code (1) | reason
	recordNoStreams    byte = 10

	recordHeader  = 3
	maxRecordBody = 1024
)

type record struct {
	kind   byte
	id     uint32 // stream or forward, or a number of streams
	bytes  uint64
	code   Code
	reason string // or address
}

func (r record) append(b []byte) []byte {
	start := len(b)
	b = append(b, r.kind, 0, 0)
	if fixedSize(r.kind) > 0 {
		b = binary.BigEndian.AppendUint32(b, r.id)
	}
	switch r.kind {
	case recordWindow:
		b = binary.BigEndian.AppendUint64(b, r.bytes)
	case recordReset, recordListenFailed, recordListenEnded:
		b = append(b, byte(r.code))
	}
	b = append(b, r.reason[:min(len(r.reason), maxTarget)]...)
	binary.BigEndian.PutUint16(b[start+1:], uint16(len(b)-start-recordHeader))
	return b
}

// readRecord returns the record with which b begins, and what follows it: nil if
// there is only a part of the record.
func readRecord(b []byte) (rec record, rest []byte, err error) {
	if len(b) < recordHeader {
		return rec, nil, nil
	}
	rec.kind = b[0]
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > maxRecordBody {
		return rec, nil, fmt.Errorf("%w: record of %d bytes", errProtocol, n)
	}
	if b = b[recordHeader:]; len(b) < n {
		return rec, nil, nil
	}
	b, rest = b[:n], b[n:]
	fixed := fixedSize(rec.kind)
	if len(b) < fixed {
		return rec, nil, fmt.Errorf("%w: record %d of %d bytes", errProtocol, rec.kind, n)
	}
	if fixed > 0 {
		rec.id = binary.BigEndian.Uint32(b)
	}
	switch rec.kind {
	case recordWindow:
		rec.bytes = binary.BigEndian.Uint64(b[4:])
	case recordReset, recordListenFailed, recordListenEnded:
		rec.code = Code(b[4])
	}
	rec.reason = string(b[fixed:])
	return rec, rest, nil
}

// fixedSize is the length of a record's body before the text.
func fixedSize(kind byte) int {
	switch kind {
	case recordWindow:
		return 12
	case recordReset, recordListenFailed, recordListenEnded:
		return 5
	case recordListen, recordListening, recordUnlisten, recordMaxStreams:
		return 4
	default:
		return 0
	}
}
