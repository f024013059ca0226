package harness

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	status := m.Run()
	RemoveBinary()
	os.Exit(status)
}

// orphans makes the test binary start a process and die.
const orphans = "RINGMOD_TEST_ORPHANS"

// TestPanicLeavesNoProcess lets a test binary die with a process of its own
// running, by a panic that no cleanup sees.
func TestPanicLeavesNoProcess(t *testing.T) {
	t.Parallel()
	if file := os.Getenv(orphans); file != "" {
		p := Serve(t, "--data-dir", t.TempDir(), "--upstream", "off", "--sumdb", "off")
		if err := os.WriteFile(file, []byte(strconv.Itoa(p.PID())), 0o600); err != nil {
			t.Fatal(err)
		}
		go panic("as ordered")
		select {}
	}
	file := t.TempDir() + "/pid"
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestPanicLeavesNoProcess$") //nolint:gosec // ourselves
	cmd.Env = append(os.Environ(), orphans+"="+file, "TMPDIR="+t.TempDir())
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "as ordered") {
		t.Fatalf("the test binary ended with %v, want its panic:\n%s", err, out)
	}
	pid, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(startTimeout); alive(string(pid)); {
		if time.Now().After(deadline) {
			t.Fatalf("process %s runs on without the test that started it", pid)
		}
		<-time.After(10 * time.Millisecond)
	}
}

// alive tells whether a process runs; one that nobody has waited for does not.
func alive(pid string) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%s/stat", pid))
	_, state, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(state, "Z")
}

func TestFreezeAndThaw(t *testing.T) {
	t.Parallel()
	p := Serve(t, "--data-dir", t.TempDir(), "--upstream", "off", "--sumdb", "off")
	healthz := func(patience time.Duration) error {
		client := http.Client{Transport: p.Client().Transport, Timeout: patience}
		resp, err := client.Get(p.URL() + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	p.Freeze()
	for deadline := time.Now().Add(startTimeout); healthz(100*time.Millisecond) == nil; { // signals take their time
		if time.Now().After(deadline) {
			t.Fatal("a frozen process answers")
		}
	}
	if !p.Running() {
		t.Error("a frozen process counts as ended")
	}
	p.Thaw()
	if err := healthz(startTimeout); err != nil {
		t.Errorf("after thawing: %v", err)
	}
	p.Freeze()
	p.Kill()
	if p.Running() {
		t.Error("a frozen process survives its end")
	}
}
