package wire

import (
	"bytes"
	"errors"
	"io"
	"math"
)

// Errors of framing. A body that ends early is io.ErrUnexpectedEOF.
var (
	ErrHeadTooLong = errors.New("the head does not fit into the buffer")
	ErrFraming     = errors.New("the body is not framed as its head says")
)

// Reader reads HTTP/1.1 messages, requests and responses alike, one after another from one connection. It allocates its
// buffer once and nothing after that. It knows as much of the protocol as a benchmark on loopback needs.
type Reader struct {
	source  io.Reader
	buffer  []byte
	at, end int // buffer[at:end] is read and not yet consumed

	left    int64 // of the body, or of the chunk at hand
	chunked bool
	tail    bool // the line end behind a chunk is still to come
	Closes  bool // the message says that its connection closes after it
	Framed  bool // it said where its body ends; a response that did not ends with the connection
}

// NewReader reads from source through a buffer of so many bytes, which bounds the length of a head.
func NewReader(source io.Reader, size int) *Reader {
	return &Reader{source: source, buffer: make([]byte, size)}
}

// Reset makes the reader read from another source, with the buffer that it has.
func (reader *Reader) Reset(source io.Reader) {
	reader.source, reader.at, reader.end = source, 0, 0
}

// Head reads one head, start line included, without the empty line. What it returns is valid until the next call.
func (reader *Reader) Head() ([]byte, error) {
	seen := 0
	for {
		waiting := reader.buffer[reader.at:reader.end]
		if found := bytes.Index(waiting[seen:], []byte("\r\n\r\n")); found >= 0 {
			head := waiting[:seen+found+2]
			reader.at += seen + found + 4
			return head, reader.frame(head)
		}
		seen = max(0, len(waiting)-3)
		if err := reader.fill(); err != nil {
			if err == io.EOF && len(waiting) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}

// Body returns the next piece of the body, valid until the next call, and io.EOF after the last.
func (reader *Reader) Body() ([]byte, error) {
	for reader.left == 0 {
		if !reader.chunked {
			return nil, io.EOF
		}
		if err := reader.nextChunk(); err != nil {
			return nil, err
		}
	}
	if reader.at == reader.end {
		if err := reader.fill(); err == io.EOF && !reader.Framed {
			return nil, io.EOF
		} else if err != nil {
			return nil, torn(err)
		}
	}
	piece := reader.buffer[reader.at:min(reader.end, reader.at+int(min(reader.left, math.MaxInt32)))]
	reader.at += len(piece)
	reader.left -= int64(len(piece))
	return piece, nil
}

// NoBody says that this head has no body after it, whatever its fields say: a request without length, for instance.
func (reader *Reader) NoBody() {
	if !reader.Framed {
		reader.left = 0
	}
}

// Widen makes room for bodies that come in big pieces.
func (reader *Reader) Widen(size int) {
	if size > len(reader.buffer) {
		wider := make([]byte, size)
		reader.end = copy(wider, reader.buffer[reader.at:reader.end])
		reader.buffer, reader.at = wider, 0
	}
}

func (reader *Reader) frame(head []byte) error {
	reader.left, reader.chunked, reader.tail, reader.Closes, reader.Framed = math.MaxInt64, false, false, false, false
	_, lines, _ := bytes.Cut(head, []byte("\r\n"))
	for len(lines) > 0 {
		var line []byte
		line, lines, _ = bytes.Cut(lines, []byte("\r\n"))
		switch {
		case is(line, "content-length:"):
			length, fine := digits(bytes.TrimSpace(line[len("content-length:"):]))
			if !fine {
				return ErrFraming
			}
			reader.left, reader.Framed = length, true
		case is(line, "transfer-encoding:"):
			reader.left, reader.chunked, reader.Framed = 0, true, true
		case is(line, "connection:"):
			reader.Closes = bytes.Contains(line, []byte("close"))
		}
	}
	return nil
}

// nextChunk reads a chunk's size; after the last, the trailers. It leaves left at the size, and chunked false at the end.
func (reader *Reader) nextChunk() error {
	if reader.tail {
		if line, err := reader.line(); err != nil || len(line) > 0 {
			return errors.Join(err, framing(len(line) > 0))
		}
		reader.tail = false
	}
	line, err := reader.line()
	if err != nil {
		return err
	}
	size, fine := hexadecimal(line)
	if !fine {
		return ErrFraming
	}
	reader.left, reader.tail = size, true
	for size == 0 && err == nil {
		if line, err = reader.line(); err == nil && len(line) == 0 {
			reader.chunked = false
			return nil
		}
	}
	return err
}

func (reader *Reader) line() ([]byte, error) {
	for {
		waiting := reader.buffer[reader.at:reader.end]
		if found := bytes.IndexByte(waiting, '\n'); found >= 0 {
			reader.at += found + 1
			return bytes.TrimSuffix(waiting[:found], []byte("\r")), nil
		}
		if err := reader.fill(); err != nil {
			return nil, torn(err)
		}
	}
}

func (reader *Reader) fill() error {
	if reader.at == reader.end {
		reader.at, reader.end = 0, 0
	} else if reader.end == len(reader.buffer) {
		reader.end = copy(reader.buffer, reader.buffer[reader.at:reader.end])
		reader.at = 0
	}
	if reader.end == len(reader.buffer) {
		return ErrHeadTooLong
	}
	count, err := reader.source.Read(reader.buffer[reader.end:])
	reader.end += count
	if count > 0 {
		return nil
	}
	return err
}

func is(line []byte, name string) bool {
	return len(line) >= len(name) && line[0]|0x20 == name[0] && bytes.EqualFold(line[:len(name)], []byte(name))
}

func hexadecimal(line []byte) (value int64, fine bool) {
	for index, digit := range line {
		switch {
		case digit >= '0' && digit <= '9':
			value = value<<4 | int64(digit-'0')
		case digit|0x20 >= 'a' && digit|0x20 <= 'f':
			value = value<<4 | int64(digit|0x20-'a'+10)
		case digit == ';':
			return value, index > 0
		default:
			return 0, false
		}
	}
	return value, len(line) > 0
}

func torn(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func framing(broken bool) error {
	if broken {
		return ErrFraming
	}
	return nil
}
