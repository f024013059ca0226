//go:build unix

package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSecondSignalEndsFills stops a process that has nothing left but a fill
// that hangs, once in an orderly way and then at once. It cannot run beside
// other tests: the signal is for the whole process.
func TestSecondSignalEndsFills(t *testing.T) { //nolint:paralleltest // see above
	asked := make(chan struct{}, 1)
	hanging := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	defer hanging.Close()
	ctx, first := context.WithCancel(t.Context())
	ready, out := io.Pipe()
	ended := make(chan int)
	go func() {
		ended <- run(ctx, []string{
			"serve", "--http-addr", "127.0.0.1:0", "--grpc-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0",
			"--data-dir", t.TempDir(), "--upstream", hanging.URL, "--sumdb", "off",
		}, out, new(bytes.Buffer))
	}()
	line := make([]byte, 200)
	n, err := ready.Read(line)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(line[:n]), "http=")
	addr, _, _ := strings.Cut(rest, " ")

	client, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(client, http.MethodGet, "http://"+addr+"/example.com/m/@v/v1.0.0.zip", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-asked
		leave()
	}()
	if resp, err := http.DefaultClient.Do(req); err == nil {
		resp.Body.Close()
		t.Fatalf("got status %d from an upstream that hangs", resp.StatusCode)
	}
	first()
	for start := time.Now(); ; {
		select {
		case status := <-ended:
			if took := time.Since(start); status != 0 || took > fillGrace-time.Second {
				t.Errorf("ended with %d after %v, want 0 before the fill's grace of %v is over", status, took, fillGrace)
			}
			return
		case <-time.After(300 * time.Millisecond): // the first are lost while the stop begins
			if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}
	}
}
