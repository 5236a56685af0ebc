package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

// reached is how an attempt to reach an address ended.
type reached struct {
	Err string  `json:"err"` // "" when somebody answered
	MS  float64 `json:"ms"`
}

// reach tries all addresses of the parameter "to" at once, by TCP or, with udp=1, by a
// datagram of size bytes for which it awaits an answer.
func reach(r *http.Request) any {
	_ = r.ParseForm()
	network := "tcp"
	if r.Form.Get("udp") != "" {
		network = "udp"
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	out := map[string]reached{}
	for _, to := range r.Form["to"] {
		wg.Add(1)
		go func() {
			defer wg.Done()
			begin := time.Now()
			err := reachOne(r.Context(), network, to, max(1, number(r, "size")))
			mu.Lock()
			defer mu.Unlock()
			out[to] = reached{timeoutName(err), float64(time.Since(begin).Microseconds()) / 1000}
		}()
	}
	wg.Wait()
	return out
}

func reachOne(ctx context.Context, network, to string, size int) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	c, err := (&net.Dialer{}).DialContext(ctx, network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if network == "tcp" {
		return nil
	}
	return exchange(c, make([]byte, size), make([]byte, 100))
}

func exchange(c net.Conn, question, answer []byte) error {
	_ = c.SetDeadline(time.Now().Add(3 * time.Second))
	if _, err := c.Write(question); err != nil {
		return err
	}
	_, err := c.Read(answer) // of a datagram only what has room
	return err
}

func timeoutName(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
		return "ETIMEDOUT"
	}
	return errName(err)
}

// ask sends a DNS question, the name servers of the root, to a server and says how it answered.
func ask(r *http.Request) any {
	network := "udp"
	question := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}
	if r.FormValue("tcp") != "" {
		network = "tcp"
		question = append(binary.BigEndian.AppendUint16(nil, uint16(len(question))), question...)
	}
	c, err := net.DialTimeout(network, r.FormValue("server"), 3*time.Second)
	if err != nil {
		return problem(err)
	}
	defer c.Close()
	answer := make([]byte, 12) // its head
	if network == "tcp" {
		length := make([]byte, 2)
		if err = exchange(c, question, length); err == nil {
			_, err = io.ReadFull(c, answer)
		}
	} else {
		err = exchange(c, question, answer)
	}
	if err != nil {
		return map[string]any{"err": timeoutName(err)}
	}
	return map[string]any{"err": "", "known": answer[0] == 0x12 && answer[1] == 0x34 && answer[2]&0x80 != 0}
}

// pretend tries to send from where this instance is not: from a foreign address, or with a
// source route, which names stations that are asked to pass it on.
func pretend(r *http.Request) any {
	d := net.Dialer{Timeout: 3 * time.Second, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		set := func(fd uintptr) {
			if o := r.FormValue("options"); o != "" {
				err = syscall.SetsockoptString(int(fd), syscall.IPPROTO_IP, syscall.IP_OPTIONS, o)
			}
			if s := r.FormValue("source"); s != "" {
				const freebind = 15
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, freebind, 1)
				err = syscall.Bind(int(fd), &syscall.SockaddrInet4{Addr: [4]byte(net.ParseIP(s).To4())})
			}
		}
		if e := raw.Control(set); e != nil {
			return e
		}
		return err
	}}
	c, err := d.Dial("udp4", r.FormValue("to"))
	if err != nil {
		return problem(err)
	}
	defer c.Close()
	return map[string]any{"err": timeoutName(exchange(c, []byte("pretend"), make([]byte, 100)))}
}
