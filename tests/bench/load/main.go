// Load makes requests as fast as they are answered, over a fixed number of connections, and prints what it saw as one
// line of JSON. It uses Go's own HTTP client, which kubectl and client-go use too.
//
//	load -url URL -ca FILE -token-file FILE -connections 8                  HTTP/1.1
//	load -url URL -ca FILE -token-file FILE -connections 2 -streams 10      HTTP/2
//	load -url URL -ca FILE -token-file FILE -connections 20 -streams 100 -hold   open streams, held until stdin ends
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	requestLimit = 30 * time.Second // a request that takes longer is a failure
	dialLimit    = 10 * time.Second
	openLimit    = 60 * time.Second // for all held streams to open
)

// One request that ended: when, and how long it took.
type sample struct {
	end  time.Duration // since the start
	took time.Duration
	size int64 // bytes of the body
}

type result struct {
	Requests int64   `json:"requests"`
	Failures int64   `json:"failures"`
	Failure  string  `json:"failure,omitempty"` // the first one
	Seconds  float64 `json:"seconds"`
	Bytes    int64   `json:"bytes"`
	// Milliseconds.
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

type load struct {
	url, token string
	tls        *tls.Config
	streams    int
	failures   atomic.Int64
	failure    atomic.Pointer[string]
}

func main() {
	var (
		url         = flag.String("url", "", "what to get")
		ca          = flag.String("ca", "", "PEM file with the server's CA")
		tokenFile   = flag.String("token-file", "", "file with the bearer token")
		connections = flag.Int("connections", 1, "connections")
		streams     = flag.Int("streams", 0, "HTTP/2 with so many requests at once a connection; 0: HTTP/1.1")
		seconds     = flag.Float64("seconds", 5, "how long")
		warmup      = flag.Float64("warmup", 0, "seconds before, which do not count")
		hold        = flag.Bool("hold", false, "open one stream each (a watch), say so on stdout, and hold them until stdin ends")
	)
	flag.Parse()
	l, err := newLoad(*url, *ca, *tokenFile, *streams)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	if *hold {
		err = l.hold(*connections)
	} else {
		err = l.run(*connections, *seconds, *warmup)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func newLoad(url, ca, tokenFile string, streams int) (*load, error) {
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it", ca)
	}
	token := []byte{}
	if tokenFile != "" {
		if token, err = os.ReadFile(tokenFile); err != nil {
			return nil, err
		}
	}
	return &load{url: url, token: strings.TrimSpace(string(token)), tls: &tls.Config{RootCAs: roots}, streams: streams}, nil
}

// connection is a client that has exactly one.
func (l *load) connection() *http.Client {
	transport := &http.Transport{
		TLSClientConfig:     l.tls.Clone(),
		DialContext:         (&net.Dialer{Timeout: dialLimit}).DialContext,
		ForceAttemptHTTP2:   l.streams > 0,
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		DisableCompression:  true,
	}
	if l.streams == 0 { // an empty map, not nil: no HTTP/2
		transport.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
	}
	return &http.Client{Transport: transport}
}

func (l *load) request(ctx context.Context) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, l.url, nil)
	if err != nil {
		return nil, err
	}
	if l.token != "" {
		r.Header.Set("Authorization", "Bearer "+l.token)
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "tollgate-bench")
	return r, nil
}

func (l *load) get(client *http.Client) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestLimit)
	defer cancel()
	r, err := l.request(ctx)
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(r)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	size, err := io.Copy(io.Discard, answer.Body)
	if err != nil {
		return size, err
	}
	if answer.StatusCode != http.StatusOK {
		return size, errors.New(answer.Status)
	}
	return size, nil
}

func (l *load) failed(err error) {
	text := err.Error()
	l.failure.CompareAndSwap(nil, &text)
	l.failures.Add(1)
}

func (l *load) run(connections int, seconds, warmup float64) error {
	from, to := duration(warmup), duration(warmup+seconds)
	workers := max(l.streams, 1)
	seen := make([][]sample, connections*workers)
	var all sync.WaitGroup
	start := time.Now()
	for c := range connections {
		client := l.connection()
		for w := range workers {
			all.Go(func() {
				mine := make([]sample, 0, 4096)
				for time.Since(start) < to {
					begin := time.Now()
					size, err := l.get(client)
					if err != nil {
						l.failed(err)
						time.Sleep(10 * time.Millisecond) // a server that is gone is not asked a million times
						continue
					}
					mine = append(mine, sample{time.Since(start), time.Since(begin), size})
				}
				seen[c*workers+w] = mine
			})
		}
	}
	all.Wait()
	var took []time.Duration
	out := result{Failures: l.failures.Load(), Seconds: seconds}
	for _, mine := range seen {
		for _, s := range mine {
			if s.end >= from && s.end < to {
				took = append(took, s.took)
				out.Bytes += s.size
			}
		}
	}
	if text := l.failure.Load(); text != nil {
		out.Failure = *text
	}
	out.Requests = int64(len(took))
	slices.Sort(took)
	out.P50, out.P90, out.P99, out.Max = at(took, 0.5), at(took, 0.9), at(took, 0.99), at(took, 1)
	return json.NewEncoder(os.Stdout).Encode(out)
}

// hold opens a stream for each worker and reads what comes, until stdin ends.
func (l *load) hold(connections int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var opened atomic.Int64
	var all, ready sync.WaitGroup
	for range connections {
		client := l.connection()
		for range max(l.streams, 1) {
			ready.Add(1)
			all.Go(func() {
				first := true
				said := func() {
					if first {
						first = false
						ready.Done()
					}
				}
				defer said()
				answer, err := l.open(ctx, client)
				if err != nil {
					l.failed(err)
					return
				}
				defer answer.Body.Close()
				opened.Add(1)
				said()
				_, err = io.Copy(io.Discard, bufio.NewReader(answer.Body))
				if ctx.Err() == nil { // it ended before we did
					l.failed(fmt.Errorf("a stream ended: %v", err))
				}
			})
		}
	}
	everybody := make(chan struct{})
	go func() { ready.Wait(); close(everybody) }()
	select {
	case <-everybody:
	case <-time.After(openLimit):
		l.failed(fmt.Errorf("not all streams were open after %v", openLimit))
	}
	out := map[string]any{"opened": opened.Load(), "failures": l.failures.Load()}
	if text := l.failure.Load(); text != nil {
		out["failure"] = *text
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	ended := l.failures.Load()
	cancel()
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(map[string]int64{"ended": ended})
}

// open begins one stream. So many at once are more than the API server takes; as clients do, it asks again.
func (l *load) open(ctx context.Context, client *http.Client) (*http.Response, error) {
	for {
		r, err := l.request(ctx)
		if err != nil {
			return nil, err
		}
		answer, err := client.Do(r)
		if err != nil || answer.StatusCode == http.StatusOK {
			return answer, err
		}
		answer.Body.Close()
		if answer.StatusCode != http.StatusTooManyRequests {
			return nil, errors.New(answer.Status)
		}
		time.Sleep(time.Second)
	}
}

func duration(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }

// at is the value, in milliseconds, that this share of the sorted values does not exceed.
func at(sorted []time.Duration, share float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	i := min(int(share*float64(len(sorted))), len(sorted)-1)
	return float64(sorted[i]) / float64(time.Millisecond)
}
