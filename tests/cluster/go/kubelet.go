package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/creack/pty"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

const (
	idleTimeout     = 4 * time.Hour          // the real kubelet's
	creationTimeout = 30 * time.Second       // the real kubelet's
	pollLog         = 50 * time.Millisecond  // how soon `logs -f` shows a line
	outputGrace     = 200 * time.Millisecond // of silence, when what a command left running holds its output
	// Ports that a pod "listens" on below this lead to the server given by
	// -forward-to; the others to the same port of this machine, so that a test
	// can put any server behind a port-forward.
	firstLocalPort = 10000
)

// node answers kube-apiserver for every pod of the cluster, with the real
// streaming protocols. kwok has such a server too, but its exec never ends the
// command's input (`exec -i`, `cp` to a pod), loses exit codes, and its attach
// has no input.
type node struct {
	logFile, workDir, forwardTo string
}

func kubelet() {
	var n node
	flags := flag.NewFlagSet("kubelet", flag.ExitOnError)
	address := flags.String("address", "", "host:port to serve on")
	cert := flags.String("cert", "", "serving certificate")
	key := flags.String("key", "", "its key")
	clientCA := flags.String("client-ca", "", "who may call")
	flags.StringVar(&n.logFile, "log-file", "", "text that is every container's log")
	flags.StringVar(&n.workDir, "work-dir", "", "where commands run: on this machine, as this user")
	flags.StringVar(&n.forwardTo, "forward-to", "", "host:port behind port-forward")
	_ = flags.Parse(os.Args[1:])

	authorities := x509.NewCertPool()
	text, err := os.ReadFile(*clientCA)
	if err != nil {
		fail(err)
	}
	if !authorities.AppendCertsFromPEM(text) {
		fail(errors.New("kubelet: no certificate in " + *clientCA))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", n.logs)
	mux.HandleFunc("/exec/{namespace}/{pod}/{container}", n.exec)
	mux.HandleFunc("/attach/{namespace}/{pod}/{container}", n.attach)
	mux.HandleFunc("/portForward/{namespace}/{pod}", n.portForward)
	server := &http.Server{
		Addr:    *address,
		Handler: mux,
		// Any user of this machine can connect, and exec runs commands: only
		// the API server may.
		TLSConfig: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: authorities},
		// An upgrade needs the connection for itself: no HTTP/2.
		TLSNextProto:      map[string]func(*http.Server, *tls.Conn, http.Handler){},
		ReadHeaderTimeout: creationTimeout,
	}
	fail(server.ListenAndServeTLS(*cert, *key))
}

func podName(r *http.Request) string {
	return r.PathValue("namespace") + "/" + r.PathValue("pod")
}

func (n node) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeExec(w, r, n, podName(r), "", r.PathValue("container"), r.Form["command"],
		options, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

// ExecInContainer really runs the command, on this machine.
func (n node) ExecInContainer(ctx context.Context, pod, _, container string, argv []string,
	in io.Reader, out, errOut io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration,
) error {
	if len(argv) == 0 {
		return errors.New("no command")
	}
	namespace, name, _ := strings.Cut(pod, "/")
	command := exec.CommandContext(ctx, argv[0], argv[1:]...)
	command.Dir = n.workDir
	// Of this machine's environment only what commands need: a test must not
	// find its own secrets in a pod.
	command.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + n.workDir, "TERM=xterm",
		"NAMESPACE=" + namespace, "HOSTNAME=" + name, "CONTAINER=" + container,
	}
	var err error
	if tty {
		err = runInTerminal(command, in, out, resize)
	} else {
		err = runWithPipes(command, in, out, errOut)
	}
	var exited *exec.ExitError
	if errors.As(err, &exited) {
		code := exited.ExitCode()
		if code < 0 {
			code = 137 // ended by a signal
		}
		return utilexec.CodeExitError{Err: err, Code: code}
	}
	return err
}

// output passes on what is written to a pipe.
type output struct {
	read, write *os.File
	reading     atomic.Bool // and not handing on what it has read to a client who is slow
	reads       atomic.Int64
	done        chan struct{}
}

func newOutput(to io.Writer) (*output, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	o := &output{read: read, write: write, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		buffer := make([]byte, 32*1024)
		for {
			o.reading.Store(true)
			n, err := read.Read(buffer)
			o.reads.Add(1)
			o.reading.Store(false)
			if n > 0 {
				if _, failed := to.Write(buffer[:n]); failed != nil {
					_ = read.Close() // the command hears of it
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return o, nil
}

// end waits until all is passed on that the command has written, however slow its reader is.
// What it left running in the background may hold the pipe open for ever.
func (o *output) end() {
	for {
		waits, reads := o.reading.Load(), o.reads.Load()
		select {
		case <-o.done:
			_ = o.read.Close()
			return
		case <-time.After(outputGrace):
			if waits && o.reading.Load() && o.reads.Load() == reads {
				_ = o.read.Close()
				<-o.done
				return
			}
		}
	}
}

func runWithPipes(command *exec.Cmd, in io.Reader, out, errOut io.Writer) error {
	var outputs []*output
	for _, one := range []struct {
		to io.Writer
		at *io.Writer
	}{{out, &command.Stdout}, {errOut, &command.Stderr}} {
		if one.to == nil { // not asked for
			continue
		}
		o, err := newOutput(one.to)
		if err != nil {
			return err
		}
		defer o.write.Close()
		*one.at = o.write
		outputs = append(outputs, o)
	}
	if in != nil {
		// Not command.Stdin: Wait would wait for the client to end its input.
		pipe, err := command.StdinPipe()
		if err != nil {
			return err
		}
		go func() {
			_, _ = io.Copy(pipe, in)
			_ = pipe.Close()
		}()
	}
	err := command.Start()
	for _, o := range outputs {
		_ = o.write.Close() // the command has its own
	}
	if err == nil {
		err = command.Wait()
	}
	for _, o := range outputs {
		o.end()
	}
	return err
}

func runInTerminal(command *exec.Cmd, in io.Reader, out io.Writer, resize <-chan remotecommand.TerminalSize) error {
	terminal, err := pty.Start(command)
	if err != nil {
		return err
	}
	defer terminal.Close()
	go func() {
		for size := range resize {
			_ = pty.Setsize(terminal, &pty.Winsize{Rows: size.Height, Cols: size.Width})
		}
	}()
	if in != nil {
		go func() {
			_, _ = io.Copy(terminal, in)
			_, _ = terminal.Write([]byte{4}) // end of input, as typed: Ctrl-D
		}()
	}
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		if out != nil {
			_, _ = io.Copy(out, terminal) // ends with EIO when the last writer is gone
		}
	}()
	err = command.Wait()
	select {
	case <-copied:
	case <-time.After(outputGrace):
	}
	return err
}

func (n node) attach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommand.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	remotecommand.ServeAttach(w, r, n, podName(r), "", r.PathValue("container"),
		options, idleTimeout, creationTimeout, remotecommand.SupportedStreamingProtocols)
}

// AttachContainer plays a program that repeats its input and ends with it.
// Without input it plays the log's new lines.
func (n node) AttachContainer(ctx context.Context, _, _, _ string,
	in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize,
) error {
	if out == nil {
		out = errOut
	}
	if in != nil {
		_, err := io.Copy(out, in)
		return err
	}
	return n.copyLog(ctx, out, logOptions{tail: 0, follow: true, limit: -1})
}

func (n node) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	portforward.ServePortForward(w, r, n, podName(r), "", options,
		idleTimeout, creationTimeout, portforward.SupportedProtocols)
}

func (n node) PortForward(ctx context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	target := n.forwardTo
	if port >= firstLocalPort {
		target = net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port)))
	}
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer conn.Close()
	go func() {
		_, _ = io.Copy(conn, stream)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	_, err = io.Copy(stream, conn)
	return err
}

type logOptions struct {
	tail, limit        int64 // -1: all
	follow, timestamps bool
}

func (n node) logs(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	number := func(name string) int64 {
		if value, err := strconv.ParseInt(query.Get(name), 10, 64); err == nil {
			return value
		}
		return -1
	}
	if query.Get("previous") == "true" {
		http.Error(w, "previous terminated container not found", http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.WriteHeader(http.StatusOK)
	_ = n.copyLog(r.Context(), flushing{w}, logOptions{
		tail:       number("tailLines"),
		limit:      number("limitBytes"),
		follow:     query.Get("follow") == "true",
		timestamps: query.Get("timestamps") == "true",
	})
}

// flushing sends every line when it is written.
type flushing struct{ http.ResponseWriter }

func (f flushing) Write(text []byte) (int, error) {
	count, err := f.ResponseWriter.Write(text)
	f.ResponseWriter.(http.Flusher).Flush()
	return count, err
}

func (n node) copyLog(ctx context.Context, out io.Writer, options logOptions) error {
	file, err := os.Open(n.logFile)
	if err != nil {
		return err
	}
	defer file.Close()
	if options.tail >= 0 {
		if err := seekToTail(file, options.tail); err != nil {
			return err
		}
	}
	reader := bufio.NewReader(file)
	var pending []byte // a line that is still being written
	for {
		part, err := reader.ReadBytes('\n')
		pending = append(pending, part...)
		if err == nil || (!options.follow && len(pending) > 0) {
			if options.timestamps {
				now := time.Now().UTC().Format(time.RFC3339Nano)
				pending = append([]byte(now+" "), pending...)
			}
			if options.limit >= 0 && int64(len(pending)) > options.limit {
				pending = pending[:options.limit]
			}
			if _, err := out.Write(pending); err != nil {
				return err
			}
			if options.limit >= 0 {
				if options.limit -= int64(len(pending)); options.limit == 0 {
					return nil
				}
			}
			pending = nil
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return fmt.Errorf("log: %w", err)
		}
		if !options.follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pollLog):
		}
	}
}

// seekToTail moves to the start of the last lines.
func seekToTail(file *os.File, lines int64) error {
	text, err := io.ReadAll(file)
	if err != nil {
		return err
	}
	at := len(text)
	if lines > 0 {
		at = len(strings.TrimSuffix(string(text), "\n"))
		for ; lines > 0 && at >= 0; lines-- {
			at = strings.LastIndexByte(string(text[:at]), '\n')
		}
		at++ // after that newline; 0 when there are fewer lines
	}
	_, err = file.Seek(int64(at), io.SeekStart)
	return err
}
