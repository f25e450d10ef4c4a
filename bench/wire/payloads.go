// Package wire holds what the mock upstream and the load generator must agree on: the bytes of the answers and the framing
// of HTTP/1.1. Both ends make the payloads themselves, so that every byte which comes through a proxy can be checked.
package wire

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand"
	"strconv"
	"time"
)

// UpstreamKey is the key that every contestant has to put in place of the client's; the mock upstream refuses any other.
const UpstreamKey = "sk-upstream"

// Done ends a stream of events, as it does in the OpenAI API.
const Done = "data: [DONE]\n\n"

// Block is one MiB that does not compress; uploads and downloads repeat it.
var Block = block()

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Sum continues a checksum that the processor computes itself, so that checking costs next to nothing.
func Sum(sum uint32, piece []byte) uint32 { return crc32.Update(sum, castagnoli, piece) }

// BlocksSum is the checksum of so many blocks in a row.
func BlocksSum(blocks int) (sum uint32) {
	for range blocks {
		sum = Sum(sum, Block)
	}
	return sum
}

func block() []byte {
	random, made := rand.New(rand.NewSource(1)), make([]byte, 1<<20)
	random.Read(made)
	return made
}

// Chat is the answer to a chat completion: JSON, 1,024 bytes.
func Chat() []byte {
	const head = `{"id":"chatcmpl-bench","object":"chat.completion","created":1735689600,"model":"gpt-4o-mini-2024-07-18",` +
		`"choices":[{"index":0,"message":{"role":"assistant","content":"`
	const tail = `","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],` +
		`"usage":{"prompt_tokens":24,"completion_tokens":96,"total_tokens":120,` +
		`"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":0,` +
		`"audio_tokens":0,"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}},` +
		`"service_tier":"default","system_fingerprint":"fp_bench"}`
	words := bytes.Repeat([]byte("what passes through unchanged "), 1024/30+1)
	return []byte(head + string(words[:1024-len(head)-len(tail)]) + tail)
}

// Embeddings is the answer for one text: 1,536 numbers, about 33 KB.
func Embeddings() []byte {
	var made bytes.Buffer
	made.WriteString(`{"object":"list","data":[{"object":"embedding","index":0,"embedding":[`)
	random := rand.New(rand.NewSource(2))
	for number := range 1536 {
		if number > 0 {
			made.WriteByte(',')
		}
		fmt.Fprintf(&made, "%.18f", random.Float64()*0.2-0.1)
	}
	made.WriteString(`]}],"model":"text-embedding-3-small","usage":{"prompt_tokens":8,"total_tokens":8}}`)
	return made.Bytes()
}

// Plan says how a stream is to come. It travels in the text of the prompt, the one place that every gateway passes on.
type Plan struct {
	Events int           // how many, the [DONE] not counted
	Delay  time.Duration // between two of them
	Batch  int           // so many are written at once
}

const planFormat = "stream %d events, %d us apart, %d at once."

func (plan Plan) String() string {
	return fmt.Sprintf(planFormat, plan.Events, plan.Delay.Microseconds(), max(plan.Batch, 1))
}

// ReadPlan finds the plan in a request's body.
func ReadPlan(body []byte) (plan Plan, found bool) {
	start := bytes.Index(body, []byte(`stream `))
	if start < 0 {
		return plan, false
	}
	var microseconds int64
	_, err := fmt.Sscanf(string(body[start:]), planFormat, &plan.Events, &microseconds, &plan.Batch)
	plan.Delay = time.Duration(microseconds) * time.Microsecond
	return plan, err == nil
}

const (
	eventHead = `data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1735689600,"model":"gpt-4o-mini",` +
		`"system_fingerprint":"fp_bench","choices":[{"index":0,"delta":{"content":"`
	eventTail = ` "},"logprobs":null,"finish_reason":null}]}` + "\n\n"
)

// AppendEvent appends one event, whose content is its number and the moment of its making (Unix time in ns).
func AppendEvent(to []byte, number int, made int64) []byte {
	to = append(to, eventHead...)
	to = appendPadded(to, int64(number), 6)
	to = append(to, ' ')
	to = appendPadded(to, made, 19)
	return append(to, eventTail...)
}

// EventSize is the length of every event.
var EventSize = len(AppendEvent(nil, 0, 0))

var content = []byte(`"content":"`)

// ReadEvent takes number and moment out of an event, whoever may have re-serialised it; a [DONE] and the like have none.
func ReadEvent(event []byte) (number int, made int64, found bool) {
	start := bytes.Index(event, content) + len(content)
	if start < len(content) || len(event) < start+26 {
		return 0, 0, false
	}
	value, fine := digits(event[start : start+6])
	made, alsoFine := digits(event[start+7 : start+26])
	return int(value), made, fine && alsoFine
}

func appendPadded(to []byte, value int64, width int) []byte {
	var room [20]byte
	text := strconv.AppendInt(room[:0], value, 10)
	for range width - len(text) {
		to = append(to, '0')
	}
	return append(to, text...)
}

func digits(text []byte) (value int64, fine bool) {
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		value = value*10 + int64(digit-'0')
	}
	return value, true
}

// Receipt is the answer to an upload.
func Receipt(size int, sum uint32) []byte {
	return fmt.Appendf(nil, `{"id":"file-bench","object":"file","bytes":%d,"crc32c":"%08x"}`, size, sum)
}
