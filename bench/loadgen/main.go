// Command loadgen asks a registry for the same kind of thing over and over, on a fixed number of connections, each of which asks
// again as soon as it has its answer. It prints one line of JSON about how that went.
//
// It speaks HTTP/1.1 over plain sockets: it shares the machine with what it measures, and a general client would take more of the
// processor than the servers do. An answer other than the expected one ends it with an error: a failed request is no result.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var (
	address     = flag.String("address", "", "host:port of the registry")
	host        = flag.String("host", "", "the Host header; by default the address")
	mode        = flag.String("mode", "get", "get, or push: a unique blob and a manifest that names it")
	connections = flag.Int("connections", 1, "requests at the same time")
	seconds     = flag.Float64("seconds", 5, "how long; 0: until every target was asked for, or -count pushes were made")
	count       = flag.Int64("count", 0, "pushes to make where -seconds is 0")
	targets     = flag.String("targets", "", "get: a file of paths, one a line, each optionally followed by a blank and the body's digest")
	check       = flag.Bool("check", false, "get: compare every body with its target's digest")
	header      = flag.String("header", "", "lines of headers to send, separated by \\n")
	repository  = flag.String("repository", "", "push: the repository's name")
	size        = flag.Int("size", 1000000, "push: bytes of the blob")
	patch       = flag.Bool("patch", false, "push: POST, PATCH, PUT, as clients send large blobs, in place of POST, PUT")
	config      = flag.String("config", "", "push: the descriptor of a config that is there already, in JSON")
)

const manifestType = "application/vnd.oci.image.manifest.v1+json"

type target struct{ path, digest string }

// A client is one connection to each host, made anew where the host closes it.
type client struct {
	headers string
	open    map[string]*connection
}

type connection struct {
	net.Conn
	reader *bufio.Reader
}

func newClient() *client {
	var lines strings.Builder
	for _, line := range strings.Split(*header, "\n") {
		if line != "" {
			lines.WriteString(line + "\r\n")
		}
	}
	return &client{headers: lines.String(), open: map[string]*connection{}}
}

// ask sends a request and gives the answer's head; its body must be read to the end. Headers of the command line go to the registry only.
func (c *client) ask(method, to, path, more string, body ...[]byte) (*http.Response, error) {
	length := 0
	for _, piece := range body {
		length += len(piece)
	}
	name, headers := to, more
	if to == *address {
		name, headers = *host, c.headers+more
	}
	if method != "GET" {
		headers += fmt.Sprintf("Content-Length: %d\r\n", length)
	}
	head := method + " " + path + " HTTP/1.1\r\nHost: " + name + "\r\n" + headers + "\r\n"
	for attempt := 0; ; attempt++ {
		held, isOld := c.open[to]
		if !isOld {
			made, err := net.Dial("tcp", to)
			if err != nil {
				return nil, err
			}
			held = &connection{made, bufio.NewReaderSize(made, 64<<10)}
			c.open[to] = held
		}
		buffers := net.Buffers(append([][]byte{[]byte(head)}, body...))
		_, err := buffers.WriteTo(held)
		var answer *http.Response
		if err == nil {
			answer, err = http.ReadResponse(held.reader, &http.Request{Method: method})
		}
		if err == nil {
			if answer.Close {
				delete(c.open, to)
				answer.Body = &closing{answer.Body, held}
			}
			return answer, nil
		}
		held.Close()
		delete(c.open, to)
		if !isOld || attempt > 0 { // one that was kept may have been closed in the meantime
			return nil, err
		}
	}
}

// A closing is the body of the last answer on a connection.
type closing struct {
	io.ReadCloser
	connection net.Conn
}

func (c *closing) Close() error {
	c.ReadCloser.Close()
	return c.connection.Close()
}

// finish reads a body to its end and checks what came of the request.
func finish(answer *http.Response, wanted int, into io.Writer) (int64, error) {
	defer answer.Body.Close()
	if answer.StatusCode != wanted {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 500))
		return 0, fmt.Errorf("%s in place of %d: %s", answer.Status, wanted, text)
	}
	return io.Copy(into, answer.Body)
}

func (c *client) get(one target) (int64, error) {
	to, path := *address, one.path
	if parsed, err := url.Parse(path); err == nil && parsed.Host != "" { // S3 itself, by a presigned address
		to, path = parsed.Host, parsed.RequestURI()
	}
	answer, err := c.ask("GET", to, path, "")
	if err == nil && answer.StatusCode == http.StatusTemporaryRedirect {
		if _, err = finish(answer, http.StatusTemporaryRedirect, io.Discard); err != nil {
			return 0, err
		}
		where, err := url.Parse(answer.Header.Get("Location"))
		if err != nil {
			return 0, err
		}
		answer, err = c.ask("GET", where.Host, where.RequestURI(), "")
	}
	if err != nil {
		return 0, err
	}
	if !*check {
		return finish(answer, http.StatusOK, io.Discard)
	}
	hasher := sha256.New()
	read, err := finish(answer, http.StatusOK, hasher)
	if got := "sha256:" + hex.EncodeToString(hasher.Sum(nil)); err == nil && got != one.digest {
		err = fmt.Errorf("%s: the body's digest is %s, not %s", path, got, one.digest)
	}
	return read, err
}

// A source makes blobs that differ in their last bytes alone, so that making and hashing them takes next to nothing.
type source struct {
	bytes []byte
	state []byte
	next  atomic.Uint64
}

func newSource(length int) *source {
	made := &source{bytes: make([]byte, length-16)}
	rand.Read(made.bytes)
	hasher := sha256.New()
	hasher.Write(made.bytes)
	made.state, _ = hasher.(encoding.BinaryMarshaler).MarshalBinary()
	return made
}

func (s *source) blob() (tail []byte, digest string) {
	tail = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, s.next.Add(1)), uint64(time.Now().UnixNano()))
	var hasher hash.Hash = sha256.New()
	hasher.(encoding.BinaryUnmarshaler).UnmarshalBinary(s.state)
	hasher.Write(tail)
	return tail, "sha256:" + hex.EncodeToString(hasher.Sum(nil))
}

// step makes a request of a push, and gives the path of the Location it is answered with.
func (c *client) step(wanted int, method, path, headers string, body ...[]byte) (string, error) {
	answer, err := c.ask(method, *address, path, headers, body...)
	if err != nil {
		return "", err
	}
	if _, err := finish(answer, wanted, io.Discard); err != nil {
		return "", fmt.Errorf("%s %s: %w", method, path, err)
	}
	location, err := url.Parse(answer.Header.Get("Location"))
	if err != nil {
		return "", err
	}
	return location.RequestURI(), nil
}

func (c *client) push(from *source) (int64, error) {
	const octets = "Content-Type: application/octet-stream\r\n"
	tail, digest := from.blob()
	location, err := c.step(http.StatusAccepted, "POST", "/v2/"+*repository+"/blobs/uploads/", "")
	if err != nil {
		return 0, err
	}
	content := [][]byte{from.bytes, tail}
	if *patch {
		if location, err = c.step(http.StatusAccepted, "PATCH", location, octets, content...); err != nil {
			return 0, err
		}
		content = nil
	}
	mark := "?"
	if strings.Contains(location, "?") {
		mark = "&"
	}
	if _, err = c.step(http.StatusCreated, "PUT", location+mark+"digest="+url.QueryEscape(digest), octets, content...); err != nil {
		return 0, err
	}
	manifest := fmt.Appendf(nil,
		`{"schemaVersion":2,"mediaType":%q,"config":%s,"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":%q,"size":%d}]}`,
		manifestType, *config, digest, *size)
	tag := "t" + hex.EncodeToString(tail)
	_, err = c.step(http.StatusCreated, "PUT", "/v2/"+*repository+"/manifests/"+tag, "Content-Type: "+manifestType+"\r\n", manifest)
	return int64(*size), err
}

func readTargets() ([]target, error) {
	text, err := os.ReadFile(*targets)
	if err != nil {
		return nil, err
	}
	var found []target
	for line := range bytes.Lines(text) {
		path, digest, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		found = append(found, target{path, digest})
	}
	return found, nil
}

func run() error {
	if *host == "" {
		*host = *address
	}
	var do func(*client, int64) (int64, error)
	limit := *count
	if *mode == "push" {
		from := newSource(*size)
		do = func(c *client, _ int64) (int64, error) { return c.push(from) }
	} else {
		all, err := readTargets()
		if err != nil {
			return err
		}
		limit = int64(len(all))
		do = func(c *client, number int64) (int64, error) { return c.get(all[number%limit]) }
	}
	var (
		next, transferred atomic.Int64
		group             sync.WaitGroup
		lock              sync.Mutex
		times             []time.Duration
		failure           error
	)
	begun := time.Now()
	end := begun.Add(time.Duration(*seconds * float64(time.Second)))
	for range *connections {
		group.Go(func() {
			c, own := newClient(), make([]time.Duration, 0, 1<<16)
			var err error
			for err == nil {
				number := next.Add(1) - 1
				started := time.Now()
				if (*seconds > 0 && !started.Before(end)) || (*seconds == 0 && number >= limit) {
					break
				}
				var moved int64
				moved, err = do(c, number)
				transferred.Add(moved)
				own = append(own, time.Since(started))
			}
			lock.Lock()
			defer lock.Unlock()
			times = append(times, own...)
			if failure == nil {
				failure = err
			}
		})
	}
	group.Wait()
	took := time.Since(begun).Seconds()
	if failure != nil {
		return failure
	}
	slices.Sort(times)
	at := func(part float64) float64 { return times[int(part*float64(len(times)-1))].Seconds() }
	var usage syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	cpu := time.Duration(usage.Utime.Nano() + usage.Stime.Nano()).Seconds()
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"requests": len(times), "seconds": took, "bytes": transferred.Load(), "p50": at(0.5), "p99": at(0.99), "cpu": cpu,
	})
}

func main() {
	flag.Parse()
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}
