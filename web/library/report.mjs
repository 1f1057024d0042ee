// A library's report in a window of its own over the editor: the picture and the figures.
import { make, icon } from '../shared/dom.mjs'
import { number } from '../shared/i18n.mjs'

export async function showReport({ t, shelf }, library) {
  const src = shelf.reportPicture(library)
  const opener = /** @type {HTMLElement | null} */ (document.activeElement)
  const status = make('p', { class: 'seqlora-hint', role: 'status' }, t('library.reportMaking'))
  const inside = make('div', { class: 'seqlora-report-inside' }, status)
  const heading = make('h2', { id: 'seqlora-report-title' }, t('library.reportTitle', { library }))
  const close = make('button', { type: 'button', class: 'seqlora-button', onclick: () => dialog.close() }, icon('times'), t('library.close'))
  const dialog = make('dialog', {
    class: 'seqlora-report', 'aria-labelledby': heading.id,
    onclose() {
      dialog.remove()
      opener?.focus()
    }
  }, make('header', {}, heading, close), inside)
  document.body.append(dialog)
  dialog.showModal()
  try {
    const figures = await shelf.report(library)
    const picture = make('img', { src, alt: t('library.reportPicture', { library }) })
    await picture.decode()
    inside.replaceChildren(
      make('a', { href: src, target: '_blank', title: t('library.reportOpen') }, picture),
      table(figures.concepts ?? [], t))
  } catch (error) {
    status.classList.add('seqlora-problem')
    status.textContent = error.status ? error.message : t('library.reportFailed')
  }
}

function table(concepts, t) {
  const columns = ['captured_energy', 'disturbance_of_output', 'prior_disturbance']
  const percent = (value) => (value == null ? '\u2013' : number(value, { style: 'percent', maximumSignificantDigits: 2 }))
  const cells = (values, tag) => values.map((value) => make(tag, tag === 'th' ? { scope: 'col' } : {}, value))
  return make('table', { class: 'seqlora-table' },
    make('caption', {}, t('library.figures')),
    make('thead', {}, make('tr', {}, cells([t('library.concept'), ...columns.map((name) => t(`library.${name}`))], 'th'))),
    make('tbody', {}, concepts.map((concept) => make('tr', {},
      make('th', { scope: 'row' }, concept.name), cells(columns.map((name) => percent(concept[name])), 'td')))))
}
