package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"oxy/bench/wire"
)

// worker runs exchanges one after another over one connection, and writes down what it sees.
type worker struct {
	job     *job
	conn    net.Conn
	reader  *wire.Reader
	stopped atomic.Bool
	broken  bool // the connection is not fit for another exchange
	start   time.Time

	exchanges int
	events    int
	bytes     int
	renewed   int             // connections that had to be opened anew
	torn      int             // streams that began and did not end as they should
	failures  map[string]int  // what went wrong, and how often
	latencies []time.Duration // of exchanges
	firsts    []time.Duration // from the request to the first event
	delays    []time.Duration // from the making of an event to its arrival
	pending   []byte          // the beginning of an event whose end has not arrived
	heard     int             // events of the stream at hand
}

var errStopped = errors.New("not done within the timeout")

func newWorker(job *job) *worker {
	return &worker{job: job, reader: wire.NewReader(nil, 16<<10), broken: true, failures: map[string]int{}}
}

// run does exchanges until count is reached or the time is up, at least one.
func (worker *worker) run(count int, duration, wait time.Duration) {
	time.Sleep(wait)
	begin := time.Now()
	for done := 0; !worker.stopped.Load(); {
		if err := worker.exchange(); err != nil {
			worker.fail(err)
		}
		if done++; done == count || count == 0 && time.Since(begin) >= duration {
			return
		}
	}
	worker.fail(errStopped)
}

func (worker *worker) exchange() error {
	if worker.start = time.Now(); worker.broken || worker.job.renew {
		if err := worker.connect(); err != nil {
			return err
		}
	}
	worker.broken = true
	if err := worker.send(); err != nil {
		return err
	}
	head, err := worker.reader.Head()
	if err != nil {
		return fmt.Errorf("no answer: %w", err)
	}
	if len(head) < 12 || string(head[9:12]) != "200" {
		status, _, _ := bytes.Cut(head, []byte("\r\n"))
		return fmt.Errorf("status: %s", status)
	}
	if err := worker.job.check(worker); err != nil {
		return err
	}
	worker.exchanges++
	worker.latencies = append(worker.latencies, time.Since(worker.start))
	worker.broken = worker.reader.Closes || !worker.reader.Framed
	return nil
}

// connect opens a connection in place of the one at hand.
func (worker *worker) connect() error {
	if worker.conn != nil {
		worker.conn.Close()
		worker.renewed++
	}
	conn, err := net.Dial("tcp", worker.job.address)
	if err != nil {
		time.Sleep(10 * time.Millisecond) // whoever refuses is not to be hammered
		return err
	}
	worker.conn, worker.broken = conn, false
	worker.reader.Reset(conn)
	return nil
}

func (worker *worker) send() error {
	_, err := worker.conn.Write(worker.job.request)
	for count := 0; worker.job.tail != nil && count < worker.job.blocks && err == nil; count++ {
		_, err = worker.conn.Write(wire.Block)
	}
	if worker.job.tail != nil && err == nil {
		worker.bytes += worker.job.blocks << 20
		_, err = worker.conn.Write(worker.job.tail)
	}
	return err
}

// checkWhole compares the answer with the one that is due; a lenient check wants a body that may be that answer,
// re-serialised or compressed.
func (worker *worker) checkWhole() error {
	at, due := 0, worker.job.answer
	err := worker.each(func(piece []byte) error {
		if worker.job.lenient {
			at += len(piece)
			return nil
		}
		if at+len(piece) > len(due) || !bytes.Equal(piece, due[at:at+len(piece)]) {
			return errors.New("the answer is not the upstream's")
		}
		at += len(piece)
		return nil
	})
	if err == nil && at != len(due) && !(worker.job.lenient && at > len(due)/8) {
		return fmt.Errorf("the answer is %d bytes, not %d", at, len(due))
	}
	return err
}

func (worker *worker) checkDownload() error {
	worker.reader.Widen(256 << 10)
	size, sum := 0, uint32(0)
	err := worker.each(func(piece []byte) error {
		size, sum = size+len(piece), wire.Sum(sum, piece)
		return nil
	})
	worker.bytes += size
	if err == nil && (size != worker.job.blocks<<20 || sum != worker.job.sum) {
		return fmt.Errorf("the download is not what was sent (%d bytes)", size)
	}
	return err
}

// checkEvents wants every event of the plan, in order, and [DONE] after them.
func (worker *worker) checkEvents() error {
	worker.heard, worker.pending = 0, worker.pending[:0]
	done := false
	err := worker.each(func(piece []byte) error {
		if len(worker.pending) > 0 {
			worker.pending = append(worker.pending, piece...)
			piece = worker.pending
		}
		for {
			end := bytes.Index(piece, []byte("\n\n"))
			if end < 0 {
				break
			}
			event := piece[:end+2]
			piece = piece[end+2:]
			if done = string(event) == wire.Done; done {
				continue
			}
			if err := worker.hear(event); err != nil {
				return err
			}
		}
		worker.pending = append(worker.pending[:0], piece...)
		return nil
	})
	if err == nil && (!done || worker.heard != worker.job.plan.Events || len(worker.pending) > 0) {
		err = fmt.Errorf("the stream ended after %d of %d events", worker.heard, worker.job.plan.Events)
	}
	if err != nil {
		worker.torn++
	}
	return err
}

func (worker *worker) hear(event []byte) error {
	now := time.Now()
	number, made, found := wire.ReadEvent(event)
	if !found && worker.job.lenient {
		return nil // gateways add events of their own: a role, a usage
	}
	if !found || number != worker.heard {
		return fmt.Errorf("event %d where %d was due", number, worker.heard)
	}
	if !worker.job.lenient && len(event) != wire.EventSize {
		return errors.New("an event was changed")
	}
	if worker.heard++; worker.heard == 1 {
		worker.firsts = append(worker.firsts, now.Sub(worker.start))
	}
	worker.events++
	worker.delays = append(worker.delays, time.Duration(now.UnixNano()-made))
	return nil
}

func (worker *worker) each(take func([]byte) error) error {
	for {
		piece, err := worker.reader.Body()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("torn: %w", err)
		}
		if err = take(piece); err != nil {
			return err
		}
	}
}

// forget drops what the warm-up left, but not what went wrong in it. Whoever was done with it early has waited for the
// rest, and the proxy may have closed the idle connection meanwhile.
func (worker *worker) forget() {
	if worker.exchanges > 0 && !worker.stopped.Load() && !worker.idle() {
		worker.connect()
	}
	worker.exchanges, worker.events, worker.bytes, worker.renewed = 0, 0, 0, 0
	worker.latencies = make([]time.Duration, 0, 1<<12)
	worker.firsts, worker.delays = nil, make([]time.Duration, 0, 1<<10)
}

// idle says whether the connection is open and silent, as it should be between two exchanges.
func (worker *worker) idle() bool {
	worker.conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := worker.conn.Read(make([]byte, 1))
	worker.conn.SetReadDeadline(time.Time{})
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func (worker *worker) fail(err error) {
	if worker.stopped.Load() {
		err = errStopped
	}
	worker.failures[cause(err)]++
}

// stop makes the exchange at hand fail, and lets none begin after it.
func (worker *worker) stop() {
	worker.stopped.Store(true)
	if conn := worker.conn; conn != nil {
		conn.SetDeadline(time.Now())
	}
}

// cause is a failure's text without the port numbers that would make each one different.
func cause(err error) string {
	var trouble *net.OpError
	if errors.As(err, &trouble) {
		return fmt.Sprintf("%s: %v", trouble.Op, trouble.Err)
	}
	return err.Error()
}
