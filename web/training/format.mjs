// Figures as people say them.
import { number } from '../shared/i18n.mjs'

export const short = (value) => number(value, { maximumSignificantDigits: 3 })

// Seconds: "1.9s", "48s", "12m 5s", "1h 3m".
export function time(seconds) {
  const part = (value, unit, options = {}) => number(value, { style: 'unit', unit, unitDisplay: 'narrow', ...options })
  if (seconds < 10) return part(seconds, 'second', { maximumFractionDigits: 1 })
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60), hours = Math.floor(minutes / 60)
  if (hours) return `${part(hours, 'hour')} ${part(minutes % 60, 'minute')}`
  return minutes ? `${part(minutes, 'minute')} ${part(whole % 60, 'second')}` : part(whole, 'second')
}
