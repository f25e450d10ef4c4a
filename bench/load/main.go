// Command load is the load generator: closed loops over raw connections, each answer checked to the last byte.
//
// It connects, warms up, prints "ready", waits for a line on its standard input, runs, and prints one line of JSON. So
// whoever starts it can read the clocks of the proxy between the two lines, with nothing else in between.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"oxy/bench/wire"
)

// job is what the flags ask for; it does not change once the run has begun.
type job struct {
	address     string
	connections int
	each        int // exchanges on each connection; 0: as many as fit into the duration
	duration    time.Duration
	warm        time.Duration
	ramp        time.Duration // the first exchanges of all connections start evenly over this time
	renew       bool          // a connection of its own for each exchange
	lenient     bool          // the answer may have been re-serialised: check that it is one, not its bytes

	plan    wire.Plan
	blocks  int // to upload or to download
	head    []byte
	request []byte // the whole of it, or what comes before the blocks of an upload
	check   func(*worker) error
	tail    []byte // what comes after the blocks
	answer  []byte // expected, where there is one that can be known
	sum     uint32 // of a download
}

func main() {
	job, timeout := parse()
	workers := make([]*worker, job.connections)
	for number := range workers {
		workers[number] = newWorker(job)
	}
	watchdog := time.AfterFunc(timeout, func() { stop(workers) })
	defer watchdog.Stop()

	connect(workers)
	if job.warm > 0 {
		together(workers, func(number int, worker *worker) { worker.run(0, job.warm, 0) })
	}
	together(workers, func(number int, worker *worker) { worker.forget() })
	fmt.Println("ready")
	bufio.NewReader(os.Stdin).ReadString('\n')

	start := time.Now()
	together(workers, func(number int, worker *worker) {
		worker.run(job.each, job.duration, job.ramp*time.Duration(number)/time.Duration(len(workers)))
	})
	line, err := json.Marshal(summary(workers, time.Since(start)))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(string(line))
}

func parse() (*job, time.Duration) {
	job, headers := &job{}, headers{}
	flag.StringVar(&job.address, "address", "", "host:port of what is measured")
	mode := flag.String("mode", "json", "json, embeddings, sse, upload or download")
	path := flag.String("path", "/v1", "what the paths begin with")
	flag.IntVar(&job.connections, "connections", 1, "how many at once")
	flag.IntVar(&job.each, "each", 0, "exchanges on each connection; 0: as many as fit into the duration")
	flag.DurationVar(&job.duration, "duration", 0, "no exchange starts after this time; 0: as long as it takes")
	flag.DurationVar(&job.warm, "warm", 0, "time to warm up, at least one exchange on each connection; 0: not at all")
	flag.DurationVar(&job.ramp, "ramp", 0, "spread the first exchanges over this time")
	flag.BoolVar(&job.renew, "renew", false, "a connection of its own for each exchange")
	flag.BoolVar(&job.lenient, "lenient", false, "accept answers that were re-serialised")
	flag.IntVar(&job.plan.Events, "events", 100, "sse: events in a stream")
	flag.DurationVar(&job.plan.Delay, "delay", 0, "sse: time between two events")
	flag.IntVar(&job.plan.Batch, "batch", 1, "sse: events that the upstream writes at once")
	flag.IntVar(&job.blocks, "mib", 50, "upload, download: size in MiB")
	key := flag.String("key", "sk-client-key-of-the-benchmark", "what is shown as bearer token")
	timeout := flag.Duration("timeout", time.Minute, "what is not done by then is broken")
	flag.Var(&headers, "header", "one more header field, as name: value; may be repeated")
	flag.Parse()
	if err := job.prepare(*mode, *path, *key, headers); err != nil || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, err, flag.Args())
		os.Exit(2)
	}
	return job, *timeout
}

// connect opens all connections before anything is measured, a few at a time, so that no backlog overflows.
func connect(workers []*worker) {
	places := make(chan struct{}, 64)
	together(workers, func(number int, worker *worker) {
		places <- struct{}{}
		worker.connect()
		<-places
	})
}

func together(workers []*worker, do func(int, *worker)) {
	var group sync.WaitGroup
	for number, worker := range workers {
		group.Go(func() { do(number, worker) })
	}
	group.Wait()
}

func stop(workers []*worker) {
	for _, worker := range workers {
		worker.stop()
	}
}

type headers []string

func (headers *headers) String() string { return strings.Join(*headers, ", ") }
func (headers *headers) Set(field string) error {
	*headers = append(*headers, field)
	return nil
}
