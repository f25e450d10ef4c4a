// Command reverseproxy is Go's httputil.ReverseProxy as its documentation sets it up, with a pool of idle connections that is
// big enough for the benchmark, and the upstream's key put in place of the client's. With POOL=1 it also has the optional
// pool of copy buffers, which spares the garbage collector 32 KB for each exchange.
package main

import (
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"sync"
)

func main() {
	target, err := url.Parse(os.Args[2])
	if err != nil {
		log.Fatal(err)
	}
	authorization := "Bearer " + os.Getenv("OPENAI_API_KEY")
	proxy := &httputil.ReverseProxy{
		Transport: &http.Transport{MaxIdleConnsPerHost: 2048},
		Rewrite: func(request *httputil.ProxyRequest) {
			request.SetURL(target)
			request.Out.Header.Set("Authorization", authorization)
		},
	}
	if os.Getenv("POOL") == "1" {
		proxy.BufferPool = &buffers{sync.Pool{New: func() any { return new([32 << 10]byte) }}}
	}
	log.Fatal(http.ListenAndServe(os.Args[1], proxy))
}

type buffers struct{ pool sync.Pool }

func (buffers *buffers) Get() []byte       { return buffers.pool.Get().(*[32 << 10]byte)[:] }
func (buffers *buffers) Put(buffer []byte) { buffers.pool.Put((*[32 << 10]byte)(buffer)) }
