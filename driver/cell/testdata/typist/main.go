// The typist is what the tests run beside the app: it does as it is told on its input.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	switch os.Args[1] {
	case "copy": // until the end of the input, then leaves with 5
		n, err := io.Copy(os.Stdout, os.Stdin)
		fmt.Fprintln(os.Stderr, "copied", n, err)
		os.Exit(5)
	case "size": // of the terminal, each time it changes, until it is 100 columns wide
		changed := make(chan os.Signal, 8)
		signal.Notify(changed, syscall.SIGWINCH)
		fmt.Println("ready")
		for {
			rows, columns := size()
			if columns == 100 {
				fmt.Println(rows, columns)
				return
			}
			<-changed
		}
	case "ask": // needs a terminal
		if _, columns := size(); columns < 0 {
			fmt.Fprintln(os.Stderr, "no terminal")
			os.Exit(1)
		}
		if _, err := os.Open("/dev/tty"); err != nil {
			fmt.Println("no controlling terminal:", err)
		}
		text, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		fmt.Println("you said", strings.TrimSpace(text), os.Getenv("TERM"))
	case "leave": // a child behind that holds the outputs
		cmd := exec.Command(os.Args[0], "hang")
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Start(); err != nil {
			panic(err)
		}
		fmt.Println("left")
	case "hang":
		time.Sleep(time.Hour)
	}
}

func size() (rows, columns int) {
	var w struct{ Rows, Columns, X, Y uint16 }
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, 0, syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&w))); errno != 0 {
		return -1, -1
	}
	return int(w.Rows), int(w.Columns)
}
