package wire

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestThePayloadsHaveTheSizesThatTheTableNames(t *testing.T) {
	if size := len(Chat()); size != 1024 {
		t.Errorf("chat is %d bytes", size)
	}
	if size := len(Embeddings()); size < 32_000 || size > 35_000 {
		t.Errorf("embeddings are %d bytes", size)
	}
}

func TestAPlanSurvivesItsTrip(t *testing.T) {
	sent := Plan{Events: 20, Delay: 50 * time.Millisecond, Batch: 1}
	if got, found := ReadPlan([]byte(`{"stream": true, "content":"` + sent.String() + `"}`)); !found || got != sent {
		t.Errorf("got %v", got)
	}
}

func TestAnEventSurvivesItsTrip(t *testing.T) {
	number, made, found := ReadEvent(AppendEvent(nil, 7, 1735689600123456789))
	if number != 7 || made != 1735689600123456789 || !found {
		t.Error(number, made, found)
	}
	if _, _, found = ReadEvent([]byte(Done)); found {
		t.Error("[DONE] is no event")
	}
}

func TestAReaderReadsAnyFramingInAnyCuts(t *testing.T) {
	cases := []struct{ name, message, body string }{
		{"length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello"},
		{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""},
		{"chunked", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\nA;x=y\r\nllohellohe\r\n0\r\nT: x\r\n\r\n", "hellohellohe"},
	}
	for _, one := range cases {
		for _, cut := range []func(io.Reader) io.Reader{whole, iotest.OneByteReader} {
			reader := NewReader(cut(strings.NewReader(one.message+one.message)), 64)
			for range 2 {
				if body, err := hear(reader); body != one.body || err != nil {
					t.Errorf("%s: %q, %v", one.name, body, err)
				}
			}
		}
	}
}

func TestAReaderTellsATornBody(t *testing.T) {
	for _, message := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloo\r\n0\r\n\r\n",
	} {
		if body, err := hear(NewReader(strings.NewReader(message), 64)); err == nil {
			t.Errorf("%q passed for whole: %q", message, body)
		}
	}
}

func whole(reader io.Reader) io.Reader { return reader }

func hear(reader *Reader) (string, error) {
	if _, err := reader.Head(); err != nil {
		return "", err
	}
	var body strings.Builder
	for {
		piece, err := reader.Body()
		if err == io.EOF {
			return body.String(), nil
		} else if err != nil {
			return body.String(), err
		}
		body.Write(piece)
	}
}
