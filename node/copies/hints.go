package copies

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ringmod/ringmod/internal/target"
	"github.com/ringmod/ringmod/ring"
)

// A file of hints has a line for each object: when it was stored, in seconds since
// 1970, a space, the target. Lines of what was delivered since stay until the file
// is written anew or there is nothing left. A line that a crash has cut short names
// another object or none; whoever delivers it finds that it is not held here. The
// line unsyncedMark says that more was dropped.
const (
	hintSuffix   = ".hints"
	unsyncedMark = "unsynced"
	deadLines    = 4096 // that may be in a file beside as many as are alive
)

// hintFile is the file of one member; "" is none.
type hintFile struct {
	path   string
	lines  int
	marked bool // it has unsyncedMark
	old    bool // another process has written it, and may have been cut short
}

func lineSize(name string) int64 { return int64(len("1234567890 \n") + len(name)) }

func (k *Keeper) hintPath(id string) string {
	if k.cfg.Dir == "" {
		return ""
	}
	return filepath.Join(k.cfg.Dir, id+hintSuffix)
}

// recall reads what an earlier process has left.
func (k *Keeper) recall(ctx context.Context) {
	if k.cfg.Dir == "" {
		return
	}
	files, err := os.ReadDir(k.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		k.log.ErrorContext(ctx, "reading hints", "path", k.cfg.Dir, "err", err)
	}
	for _, file := range files {
		id, ok := strings.CutSuffix(file.Name(), hintSuffix)
		if !ok || ring.CheckName("node id", id, 1, ring.MaxIDLen) != nil {
			continue
		}
		if err := k.recallOf(id); err != nil {
			k.log.ErrorContext(ctx, "reading hints", "peer", id, "err", err)
		}
	}
}

func (k *Keeper) recallOf(id string) error {
	f, err := os.Open(k.hintPath(id))
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // only read
	k.mu.Lock()
	defer k.mu.Unlock()
	b := k.backlogs[id]
	if b == nil {
		b = k.newBacklog(id)
		k.backlogs[id] = b
	}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		b.file.lines++
		b.recall(lines.Text())
	}
	b.file.marked, b.file.old = b.unsynced, true
	if lines.Err() != nil {
		b.unsynced = true
	}
	return lines.Err()
}

// recall takes a line of the file.
func (b *backlog) recall(line string) {
	if line == unsyncedMark {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.unsynced = true
		return
	}
	number, name, _ := strings.Cut(line, " ")
	seconds, err := strconv.ParseInt(number, 10, 64)
	t, bad := target.Parse(name)
	if err == nil && bad == nil && travels(t.Kind) {
		now := time.Now()
		since := time.Unix(seconds, 0)
		if since.After(now) { // the clock was set back
			since = now
		}
		b.put(name, waiting{since: since, due: now, hinted: true})
	}
}

// persist makes hints of all that waits and forgets what may be forgotten.
func (b *backlog) persist() {
	text, names, anew := b.unwritten()
	if len(names) > 0 {
		if err := b.file.write(text, anew); err != nil {
			b.log.Error("writing hints", "path", b.file.path, "err", err)
			return
		}
		b.written(names, anew)
	}
	b.settle()
}

// unwritten returns what is to be appended to the file, or to be all of it.
func (b *backlog) unwritten() (text []byte, names []string, anew bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	anew = b.file.old || b.unsynced != b.file.marked || b.file.lines > 2*len(b.waiting)+deadLines
	if anew && b.unsynced {
		text = append(text, unsyncedMark+"\n"...)
	}
	for name, w := range b.waiting {
		switch {
		case w.light:
			b.remove(name)
		case anew || !w.hinted:
			text = fmt.Appendf(text, "%d %s\n", w.since.Unix(), name)
			names = append(names, name)
		}
	}
	return text, names, anew
}

// written notes that these stand in the file.
func (b *backlog) written(names []string, anew bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if anew {
		b.file.lines, b.file.marked, b.file.old = 0, b.unsynced, false
	}
	b.file.lines += len(names)
	for _, name := range names {
		if w := b.waiting[name]; w != nil && !w.hinted {
			w.hinted = true
			b.hinted++
		}
	}
}

// settle clears the file when nothing waits that stands there.
func (b *backlog) settle() {
	b.mu.Lock()
	hinted, unsynced := b.hinted, b.unsynced
	b.mu.Unlock()
	if hinted > 0 || b.file.lines == 0 && unsynced == b.file.marked {
		return
	}
	var err error
	if unsynced {
		err = b.file.write([]byte(unsyncedMark+"\n"), true)
	} else {
		err = b.file.remove()
	}
	if err != nil {
		b.log.Error("clearing hints", "path", b.file.path, "err", err)
		return
	}
	b.file.lines, b.file.marked, b.file.old = 0, unsynced, false
}

// write appends to the file, or replaces it. It returns when the bytes are durable.
func (h *hintFile) write(text []byte, anew bool) error {
	if h.path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(h.path), 0o777); err != nil {
		return err
	}
	path, how := h.path, os.O_APPEND
	if anew {
		path, how = h.path+".new", os.O_TRUNC
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|how, 0o666)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil && anew {
		err = os.Rename(path, h.path)
	}
	return err
}

// remove removes the file, if there is one.
func (h *hintFile) remove() error {
	if h.path == "" {
		return nil
	}
	if err := os.Remove(h.path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
