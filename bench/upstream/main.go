// Command upstream stands in for the OpenAI API on loopback. It answers as fast as it can, checks that the upstream's key
// arrived in place of the client's, and takes so little of the processor that the proxy in front of it is what is measured.
//
// It prints one line of JSON with its ports as soon as it listens, and serves until its standard input ends.
package main

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"oxy/bench/wire"
)

const fields = "date: Wed, 01 Jan 2025 00:00:00 GMT\r\n" +
	"server: cloudflare\r\n" +
	"openai-organization: org-bench\r\n" +
	"openai-processing-ms: 12\r\n" +
	"openai-version: 2020-10-01\r\n" +
	"x-ratelimit-limit-requests: 10000\r\n" +
	"x-ratelimit-limit-tokens: 2000000\r\n" +
	"x-ratelimit-remaining-requests: 9999\r\n" +
	"x-ratelimit-remaining-tokens: 1999976\r\n" +
	"x-request-id: req_0123456789abcdef0123456789abcdef\r\n" +
	"strict-transport-security: max-age=31536000; includeSubDomains; preload\r\n" +
	"cf-ray: 0123456789abcdef-FRA\r\n"

var (
	chat       = answer("200 OK", "application/json", wire.Chat())
	embeddings = answer("200 OK", "application/json", wire.Embeddings())
	refusal    = answer("401 Unauthorized", "application/json", []byte(`{"error":{"message":"not the upstream's key"}}`))
	missing    = answer("404 Not Found", "application/json", []byte(`{"error":{"message":"no such path"}}`))
	streamHead = []byte("HTTP/1.1 200 OK\r\n" + fields + "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n")
	chunkSize  = fmt.Appendf(nil, "%x\r\n", wire.EventSize)
	streamEnd  = fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", len(wire.Done), wire.Done)
	bearer     = []byte("Bearer " + wire.UpstreamKey + "\r\n")
)

func main() {
	pem := flag.String("pem", "", "file to write the certificate of the TLS port to; without it there is no TLS port")
	download := flag.Int("download", 200, "size of the file to download, in MiB")
	flag.Parse()

	ports := map[string]int{"plain": listen(nil, *download)}
	if *pem != "" {
		certificate, text, err := selfSigned()
		if err == nil {
			err = os.WriteFile(*pem, text, 0o644)
		}
		if err != nil {
			log.Fatal(err)
		}
		ports["tls"] = listen(&tls.Config{Certificates: []tls.Certificate{certificate}}, *download)
	}
	line, _ := json.Marshal(ports)
	fmt.Println(string(line))
	io.Copy(io.Discard, os.Stdin)
}

func listen(config *tls.Config, download int) (port int) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				log.Fatal(err)
			}
			if config != nil {
				conn = tls.Server(conn, config)
			}
			go serve(&peer{conn: conn, reader: wire.NewReader(conn, 8<<10), download: download})
		}
	}()
	return listener.Addr().(*net.TCPAddr).Port
}

// peer is one connection; what it allocates lives as long as the connection.
type peer struct {
	conn     net.Conn
	reader   *wire.Reader
	download int
	body     []byte
	out      []byte
}

func serve(peer *peer) {
	defer peer.conn.Close()
	for {
		head, err := peer.reader.Head()
		if err == nil {
			peer.reader.NoBody()
			err = peer.answer(head)
		}
		if err != nil || peer.reader.Closes {
			return
		}
	}
}

// answer reads the rest of the request and writes the answer to it.
func (peer *peer) answer(head []byte) error {
	_, target, _ := bytes.Cut(head[:bytes.IndexByte(head, '\r')], []byte(" "))
	path, _, _ := bytes.Cut(target, []byte(" "))
	switch {
	case !bytes.Contains(head, bearer):
		return peer.refuse()
	case bytes.HasSuffix(path, []byte("/chat/completions")):
		return peer.complete()
	case bytes.HasSuffix(path, []byte("/embeddings")):
		return peer.embed()
	case bytes.HasSuffix(path, []byte("/content")):
		return peer.give()
	case bytes.HasSuffix(path, []byte("/files")):
		return peer.sink()
	}
	return peer.miss()
}

func (peer *peer) complete() error {
	if err := peer.readBody(); err != nil {
		return err
	}
	plan, streams := wire.ReadPlan(peer.body)
	if !streams {
		return peer.write(chat)
	}
	return peer.stream(plan)
}

func (peer *peer) embed() error  { return errors.Join(peer.readBody(), peer.write(embeddings)) }
func (peer *peer) refuse() error { return errors.Join(peer.drain(nil), peer.write(refusal)) }
func (peer *peer) miss() error   { return errors.Join(peer.drain(nil), peer.write(missing)) }

// sink swallows an upload and says what it has heard.
func (peer *peer) sink() error {
	var size, sum = 0, uint32(0)
	peer.reader.Widen(256 << 10)
	err := peer.drain(func(piece []byte) { size, sum = size+len(piece), wire.Sum(sum, piece) })
	if err != nil {
		return err
	}
	return peer.write(answer("200 OK", "application/json", wire.Receipt(size, sum)))
}

// give sends the file.
func (peer *peer) give() error {
	err := peer.write(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\n%scontent-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n",
		fields, peer.download<<20))
	for count := 0; count < peer.download && err == nil; count++ {
		err = peer.write(wire.Block)
	}
	return err
}

// stream writes events at the times that the plan sets from the start of the stream: what is late does not shift the rest.
func (peer *peer) stream(plan wire.Plan) error {
	peer.out = append(peer.out[:0], streamHead...)
	start := time.Now()
	for number := range plan.Events {
		if number > 0 && plan.Delay > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(number) * plan.Delay)))
		}
		peer.out = append(peer.out, chunkSize...)
		peer.out = wire.AppendEvent(peer.out, number, time.Now().UnixNano())
		peer.out = append(peer.out, "\r\n"...)
		if last := number == plan.Events-1; last {
			peer.out = append(peer.out, streamEnd...)
		} else if (number+1)%max(plan.Batch, 1) != 0 {
			continue
		}
		if err := peer.write(peer.out); err != nil {
			return err
		}
		peer.out = peer.out[:0]
	}
	return nil
}

func (peer *peer) readBody() error {
	peer.body = peer.body[:0]
	return peer.drain(func(piece []byte) { peer.body = append(peer.body, piece...) })
}

func (peer *peer) drain(each func([]byte)) error {
	for {
		piece, err := peer.reader.Body()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if each != nil {
			each(piece)
		}
	}
}

func (peer *peer) write(what []byte) error {
	_, err := peer.conn.Write(what)
	return err
}

func answer(status, kind string, body []byte) []byte {
	return fmt.Appendf(nil, "HTTP/1.1 %s\r\n%scontent-type: %s\r\ncontent-length: %d\r\n\r\n%s", status, fields, kind, len(body), body)
}
