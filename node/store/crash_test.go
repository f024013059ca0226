package store

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestCrashPoints ends a commit after each of its steps and looks at what the next
// process finds.
func TestCrashPoints(t *testing.T) {
	t.Parallel()
	const name = "example.com/a/@v/v1.0.0.zip"
	older, newer := content("old", 300_000), content("new", 200_000)
	tests := []struct {
		step     string
		fresh    string // what a commit of a new name leaves, "" for nothing
		replaced string // what a commit over older leaves
	}{
		{"written", "", older},
		{"synced", "", older},
		{"folders", "", older},
		{"indexed", "", ""},
		{"renamed", newer, newer},
	}
	for _, test := range tests {
		for _, had := range []string{"", older} {
			t.Run(fmt.Sprintf("%s had %d", test.step, len(had)), func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				d := openTest(t, dir)
				left := test.fresh
				if had != "" {
					mustCommit(t, d, name, had)
					left = test.replaced
				}
				d.setStep(func(step string) error {
					if step == test.step {
						return &crash{}
					}
					return nil
				})
				if err := commit(t, d, name, newer); err == nil {
					t.Fatal("the commit did not crash")
				}
				d.Close()

				d = openTest(t, dir)
				if got := files(t, filepath.Join(dir, "tmp")); len(got) != 0 {
					t.Errorf("tmp holds %q after the restart", got)
				}
				for range 2 {
					if left == "" {
						wantAbsent(t, d, name)
					} else {
						want(t, d, name, left)
					}
				}
				mustCommit(t, d, name, newer)
				want(t, d, name, newer)
			})
		}
	}
}

// TestFailedSteps lets each step of a commit fail: the older object stays.
func TestFailedSteps(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	const name = "example.com/a/@v/v1.0.0.zip"
	mustCommit(t, d, name, content("old", 100))
	errStep := errors.New("step failed")
	for _, failing := range []string{"written", "synced", "folders"} {
		d.setStep(func(step string) error {
			if step == failing {
				return errStep
			}
			return nil
		})
		if err := commit(t, d, name, content("new", 100)); !errors.Is(err, errStep) {
			t.Errorf("%s: %v, want the step's error", failing, err)
		}
		want(t, d, name, content("old", 100))
	}
	if got := files(t, filepath.Join(d.dir, "tmp")); len(got) != 0 {
		t.Errorf("tmp holds %q", got)
	}
}

// TestRenameFails puts a folder where the object should go.
func TestRenameFails(t *testing.T) {
	t.Parallel()
	d := openTest(t, t.TempDir())
	if err := os.MkdirAll(file(d, "a/b/c"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := commit(t, d, "a/b", "x"); err == nil {
		t.Error("Commit over a folder succeeds")
	}
	if _, err := d.record("a/b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("entry after the failure: %v, want none", err)
	}
	wantAbsent(t, d, "a/b")
}

const killDirEnv = "STORE_TEST_KILL_DIR"

// TestKilledChild is the process that TestKill kills: it commits and removes
// until it is dead, and prints what is done.
func TestKilledChild(t *testing.T) {
	t.Parallel()
	dir := os.Getenv(killDirEnv)
	if dir == "" {
		t.Skip("only run by TestKill")
	}
	d, err := OpenDisk(DiskConfig{Dir: dir, Inspect: inspectContent})
	if err != nil {
		fmt.Printf("open %v\n", err)
		os.Exit(1)
	}
	fmt.Println("ready")
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for {
				name := fmt.Sprintf("example.com/m%d/@v/v1.0.%d.zip", g, rand.Int64N(1<<40))
				if err := commit(t, d, name, content(name, rand.IntN(300_000))); err != nil {
					fmt.Printf("open %v\n", err)
					os.Exit(1)
				}
				fmt.Printf("done %s\n", name)
				if err := d.PutDocument("example.com/m/@v/list", Document{Body: []byte(name)}); err != nil {
					os.Exit(1)
				}
			}
		})
	}
	wg.Wait()
}

// TestKill kills a busy process at random moments: what was reported as
// committed is there, everything else is whole or absent.
func TestKill(t *testing.T) {
	t.Parallel()
	rounds := 300
	if testing.Short() {
		rounds = 20
	}
	dir := t.TempDir()
	total := 0
	for round := range rounds {
		done := runAndKill(t, dir, time.Duration(rand.IntN(60))*time.Millisecond)
		total += len(done)
		d := openTest(t, dir)
		for _, name := range done {
			if b, err := read(t, d, name); err != nil {
				t.Fatalf("round %d: %s was committed: %v", round, name, err)
			} else if _, err := checkContent([]byte(b)); err != nil {
				t.Fatalf("round %d: %s: %v", round, name, err)
			}
		}
		checkAllFiles(t, d)
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(dir, "objects", "example.com")); err != nil {
			t.Fatal(err)
		}
	}
	if total == 0 {
		t.Error("no round has committed anything")
	}
}

// runAndKill returns the names that were committed.
func runAndKill(t *testing.T, dir string, after time.Duration) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledChild$")
	cmd.Env = append(os.Environ(), killDirEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var done []string
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if reason, ok := strings.CutPrefix(line, "open "); ok {
			t.Errorf("child: %s", reason)
		}
		if line == "ready" {
			time.AfterFunc(after, func() { cmd.Process.Kill() }) //nolint:errcheck // it may have ended by itself
		}
		if name, ok := strings.CutPrefix(line, "done "); ok {
			done = append(done, name)
		}
	}
	cmd.Wait() //nolint:errcheck // it was killed
	return done
}

// checkAllFiles checks that each file below objects is whole, without the help of
// the store, and that nothing had to be set aside.
func checkAllFiles(t *testing.T, d *Disk) {
	t.Helper()
	err := filepath.WalkDir(d.dirs.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || strings.HasSuffix(path, "list") {
			return err
		}
		b, err := os.ReadFile(path)
		if err == nil {
			_, err = checkContent(b)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if got := files(t, d.quarantine.dir); len(got) != 0 {
		t.Errorf("quarantine holds %q", got)
	}
}
