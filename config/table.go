package config

import (
	"fmt"
	"strings"
)

// FlagTable is the Markdown table of options for the README.
func FlagTable(options []Option) string {
	var b strings.Builder
	b.WriteString("| flag | environment | default | what it does |\n| --- | --- | --- | --- |\n")
	for _, o := range options {
		def := ""
		if o.Default != "" {
			def = "`" + o.Default + "`"
		}
		fmt.Fprintf(&b, "| `%s` | `%s` | %s | %s |\n", strings.ReplaceAll(o.Flag(), "|", `\|`), o.Env(), def, o.Help)
	}
	return b.String()
}
