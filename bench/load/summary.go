package main

import (
	"slices"
	"time"
)

type report struct {
	Seconds   float64        `json:"seconds"`
	Exchanges int            `json:"exchanges"`
	Events    int            `json:"events"`
	Bytes     int            `json:"bytes"`
	Rate      float64        `json:"rate"`       // exchanges a second
	EventRate float64        `json:"event_rate"` // events a second
	Renewed   int            `json:"renewed"`
	Broken    int            `json:"broken_streams"`
	Errors    int            `json:"errors"`
	Failures  map[string]int `json:"failures"`
	Stopped   bool           `json:"unfinished"`
	Latency   quantiles      `json:"latency_us"`
	First     quantiles      `json:"first_event_us"`
	Delay     quantiles      `json:"event_delay_us"`
}

type quantiles struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p999"`
	Max  float64 `json:"max"`
}

func summary(workers []*worker, elapsed time.Duration) report {
	made := report{Seconds: elapsed.Seconds(), Failures: map[string]int{}}
	var latencies, firsts, delays []time.Duration
	for _, worker := range workers {
		made.Exchanges += worker.exchanges
		made.Events += worker.events
		made.Bytes += worker.bytes
		made.Renewed += worker.renewed
		made.Broken += worker.torn
		made.Stopped = made.Stopped || worker.stopped.Load()
		for cause, count := range worker.failures {
			made.Failures[cause] += count
			made.Errors += count
		}
		latencies = append(latencies, worker.latencies...)
		firsts = append(firsts, worker.firsts...)
		delays = append(delays, worker.delays...)
	}
	made.Rate = float64(made.Exchanges) / made.Seconds
	made.EventRate = float64(made.Events) / made.Seconds
	made.Latency, made.First, made.Delay = measure(latencies), measure(firsts), measure(delays)
	return made
}

func measure(samples []time.Duration) quantiles {
	if len(samples) == 0 {
		return quantiles{}
	}
	slices.Sort(samples)
	at := func(share float64) float64 {
		sample := samples[min(len(samples)-1, int(share*float64(len(samples))))]
		return float64(sample.Nanoseconds()) / 1000
	}
	return quantiles{P50: at(0.5), P90: at(0.9), P99: at(0.99), P999: at(0.999), Max: at(1)}
}
