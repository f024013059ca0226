package harness

import (
	"os/exec"
	"runtime"
	"sync"
	"syscall"
)

// launches are commands on their way to the thread that starts them all. The
// kernel kills a child of that thread when the thread ends, which is when this
// process ends, be it by a panic: a test leaves no process behind.
var launches = sync.OnceValue(func() chan<- launch { //nolint:gochecknoglobals // one thread for all tests of a binary
	queue := make(chan launch)
	go func() {
		runtime.LockOSThread() // never unlocked
		for l := range queue {
			l.result <- l.start()
		}
	}()
	return queue
})

type launch struct {
	cmd    *exec.Cmd
	host   Host
	result chan error
}

// startCommand starts cmd on host.
func startCommand(cmd *exec.Cmd, host Host) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	l := launch{cmd, host, make(chan error, 1)}
	launches() <- l
	return <-l.result
}

func (l launch) start() error {
	if l.host == nil {
		return l.cmd.Start()
	}
	leave, err := l.host.Enter()
	if err != nil {
		return err
	}
	err = l.cmd.Start()
	if left := leave(); left != nil {
		panic(left) // all that is started later would be in the wrong place
	}
	return err
}
