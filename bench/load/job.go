package main

import (
	"fmt"
	"strings"

	"oxy/bench/wire"
)

const boundary = "----bench-7d1c2f9a"

// prepare writes the request as the official Python SDK would send it, once for all exchanges, and picks the check.
func (job *job) prepare(mode, path, key string, more headers) error {
	method, kind, body, size := "POST", "application/json", "", 0
	switch mode {
	case "json":
		path, body = path+"/chat/completions", prompt("Say something about reverse proxies.", "")
		job.check, job.answer = (*worker).checkWhole, wire.Chat()
	case "embeddings":
		path, body = path+"/embeddings", `{"input":"what passes through unchanged","model":"text-embedding-3-small","encoding_format":"float"}`
		job.check, job.answer = (*worker).checkWhole, wire.Embeddings()
	case "sse":
		path, body = path+"/chat/completions", prompt(job.plan.String(), `,"stream":true`)
		job.check = (*worker).checkEvents
	case "upload":
		path, kind = path+"/files", "multipart/form-data; boundary="+boundary
		body, job.tail = part("purpose", "", "batch")+part("file", `; filename="bench.bin"`, ""), []byte("\r\n--"+boundary+"--\r\n")
		size = job.blocks<<20 + len(job.tail)
		sum := wire.Sum(0, []byte(body))
		for range job.blocks {
			sum = wire.Sum(sum, wire.Block)
		}
		job.check, job.answer = (*worker).checkWhole, wire.Receipt(size+len(body), wire.Sum(sum, job.tail))
	case "download":
		method, path, kind = "GET", path+"/files/file-bench/content", ""
		job.check, job.sum = (*worker).checkDownload, wire.BlocksSum(job.blocks)
	default:
		return fmt.Errorf("there is no mode %q", mode)
	}
	job.request = []byte(head(method, path, job.address, kind, key, size+len(body), job.renew, more) + body)
	return nil
}

func head(method, path, host, kind, key string, length int, closes bool, more headers) string {
	connection := "keep-alive"
	if closes {
		connection = "close"
	}
	fields := append(headers{
		"Host: " + host,
		"Accept-Encoding: gzip, deflate",
		"Connection: " + connection,
		"Accept: application/json",
		"User-Agent: OpenAI/Python 1.99.0",
		"X-Stainless-Lang: python",
		"X-Stainless-Package-Version: 1.99.0",
		"X-Stainless-OS: Linux",
		"X-Stainless-Arch: x64",
		"X-Stainless-Runtime: CPython",
		"X-Stainless-Runtime-Version: 3.13.0",
		"Authorization: Bearer " + key,
		"X-Stainless-Async: false",
		"x-stainless-retry-count: 0",
		"x-stainless-read-timeout: 600",
	}, more...)
	if method != "GET" {
		fields = append(fields, "Content-Type: "+kind, fmt.Sprintf("Content-Length: %d", length))
	}
	return method + " " + path + " HTTP/1.1\r\n" + strings.Join(fields, "\r\n") + "\r\n\r\n"
}

func prompt(text, more string) string {
	return `{"messages":[{"role":"system","content":"You are a helpful assistant."},{"role":"user","content":"` + text +
		`"}],"model":"gpt-4o-mini","max_tokens":256,"temperature":0.7` + more + `}`
}

func part(name, more, value string) string {
	text := "--" + boundary + "\r\nContent-Disposition: form-data; name=\"" + name + "\"" + more + "\r\n"
	if more != "" {
		return text + "Content-Type: application/octet-stream\r\n\r\n"
	}
	return text + "\r\n" + value + "\r\n"
}
