package supervisor

import (
	"fmt"
	"time"

	"github.com/leapcell/leapcell"
	"github.com/leapcell/leapcell/driver/cell"
	"github.com/leapcell/leapcell/driver/gate"
	"github.com/leapcell/leapcell/driver/image"
)

// What an operator reads among the events of a task.

func pulledText(ref string, img *image.Image, took time.Duration) string {
	text := "image pulled in " + took.Round(time.Millisecond).String()
	if img.Pulled > 0 {
		text += fmt.Sprintf(", %.1f MB", float64(img.Pulled)/1e6)
	}
	if img.Ref != ref {
		text += ": " + img.Ref // what the tag is now
	}
	return text
}

func startedText(s gate.Stats) string {
	return fmt.Sprintf("started in %.1f ms and ready: sandbox %.1f ms, app %.1f ms", ms(s.Sandbox+s.Start), ms(s.Sandbox), ms(s.Start))
}

// outOfMemoryText says the limit, and what was used where the kernel keeps that.
func outOfMemoryText(limitMB int, used cell.Stats) string {
	text := fmt.Sprintf("out of memory: limit %d MB", limitMB)
	if used.MaxMemory > 0 {
		text += fmt.Sprintf(", used %.1f MB", float64(used.MaxMemory)/(1<<20))
	}
	return text
}

// endedText tells a crash from a start that failed and from an end that was asked for.
func endedText(exit Exit, s gate.Stats, life time.Duration) string {
	if exit.Code == 0 || exit.OOM || s.Start == 0 || exit.Message == leapcell.TextStartFailed {
		return exit.Message
	}
	return fmt.Sprintf("crashed: %s, %s after its start", exit.Message, life.Round(time.Millisecond))
}
